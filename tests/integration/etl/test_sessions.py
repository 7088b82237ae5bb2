"""Sessions serve one table after another, and only while nothing has gone wrong in them."""

from contextlib import closing
from functools import partial

import psycopg2
import pytest

from etl.postgres.sessions import UNLIMITED, Sessions, connect_target


@pytest.fixture
def sessions(replication):
    with closing(Sessions(partial(connect_target, replication.settings))) as found:
        yield found


def pid_of(connection):
    return connection.info.backend_pid


def test_session_is_reused(sessions):
    with sessions.take() as first:
        pass
    with sessions.take() as second:
        pass

    assert pid_of(first) == pid_of(second)


def test_concurrent_users_get_separate_sessions(sessions):
    with sessions.take() as one, sessions.take() as other:
        assert pid_of(one) != pid_of(other)


def test_failed_session_is_not_reused(sessions):
    with pytest.raises(LookupError), sessions.take() as first:
        raise LookupError
    with sessions.take() as second:
        assert second is not first

    assert first.closed


def test_lost_session_is_not_reused(sessions, replication):
    with sessions.take() as first:
        replication.on_target("select pg_terminate_backend(%s, 10000)", pid_of(first))
        with pytest.raises(psycopg2.OperationalError), first.cursor() as cursor:
            cursor.execute("select 1")
    with sessions.take() as second, second.cursor() as cursor:
        cursor.execute("select 1")

    assert pid_of(second) != pid_of(first)


def test_no_session_is_left_open(sessions):
    with sessions.take() as one, sessions.take() as other:
        pass

    sessions.close()

    assert one.closed
    assert other.closed


@pytest.fixture
def hasty(orders):
    """Orders between servers that end a session which idles, or has a transaction open, for 0.2 s."""
    for query in (orders.on_source, orders.on_target):
        ((version, database),) = query("select current_setting('server_version_num')::int, current_database()")
        for name, since in UNLIMITED.items():
            if version >= since:
                query(f"alter database {database} set {name} = '200ms'")
    return orders


def test_server_timeouts_do_not_end_a_run(hasty):
    """While it waits at the fence, the session that holds the run lock idles."""
    with closing(hasty.open_source()) as writer, writer.cursor() as cursor:
        cursor.execute("insert into orders (total) values (1)")

        result = hasty.run("orders", fence_wait_seconds=0.6)

    (table,) = result.tables
    assert table.error is None
    assert hasty.on_target("select count(*) from raw.orders") == [(1000,)]
    assert hasty.on_target("select status from etl.runs") == [("succeeded",)]
