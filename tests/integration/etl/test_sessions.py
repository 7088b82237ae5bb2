"""Sessions serve one table after another, and only while nothing has gone wrong in them."""

from contextlib import closing
from functools import partial

import psycopg2
import pytest

from etl.postgres.sessions import Sessions, connect_target


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
