"""Servers that stop answering and networks that stop passing bytes on: each wait ends, and the run recovers.

Processes of a server are stopped with SIGSTOP, so the servers are embedded. A proxy that passes nothing on keeps its
connections open, so that neither side sees a lost connection.
"""

import os
import random
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import psycopg2
import pytest

import etl
from etl.database_url import DatabaseUrl
from etl.errors import UnavailableError
from etl.postgres import stalls
from etl.postgres.copy_pipe import copy_in, copy_out, stream
from etl.postgres.sessions import connect_source, connect_target
from etl.postgres.throttle import Throttle
from etl.results import Event
from tests.integration.etl.faults import (
    COPIED_BYTES,
    FIRST_IN_ONE,
    FIRST_IN_RANGES,
    MARGIN_BYTES,
    MERGE,
    SIDES,
    Proxy,
    assert_whole,
    execute,
    has_no_sessions,
    port_of,
    stock,
    through,
    touch_orders,
)

CONNECT = {"source": connect_source, "target": connect_target}
# Far less than the defaults, so that tests do not wait long; nothing here measures how long they waited.
BOUNDS = {"stall_timeout_seconds": 1.0, "statement_timeout_seconds": 3.0, "connect_timeout_seconds": 2}
END_LOCK_SESSION = """
    select pg_terminate_backend(a.pid, 10000) from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.objsubid = 1 and a.datname = current_database()
"""


@pytest.fixture
def source_server(embedded_source_server):
    return embedded_source_server


@pytest.fixture
def target_server(embedded_target_server):
    return embedded_target_server


@pytest.fixture
def short_grace(monkeypatch):
    """The client waits only a little longer than the server for a statement to time out."""
    monkeypatch.setattr(stalls, "GRACE_SECONDS", 1.0)


@pytest.fixture
def shop(orders, insert_orders, short_grace):  # noqa: ARG001 the order of fixtures
    """The orders, many of them, and a table without watermark beside them."""
    stock(orders, insert_orders)
    return orders


class Stopper:
    """Stops what a link carries: the process of the server that serves it, or the link; `go_on` undoes that."""

    def __init__(self, kind, read):
        self._kind, self._read = kind, read
        self.go_on = lambda: None

    def stop(self, link):
        port = link.server.getsockname()[1]
        found = execute(self._read, "select pid from pg_stat_activity where client_port = %s", port)
        if self._kind == "network" or not found:  # one that is logging in is not listed yet
            link.flows.clear()
            self.go_on = link.flows.set
            return
        ((pid,),) = found
        os.kill(pid, signal.SIGSTOP)

        def go_on():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self.go_on = go_on


@contextmanager
def stopped_at(shop, side, kind, limit, **options):
    """Put a proxy before one side; once it has passed on `limit` bytes, what carries them stops. Yield both."""
    url = shop.source_url if side == "source" else shop.target_url
    with closing(psycopg2.connect(url)) as watching:
        watching.autocommit = True
        stopper = Stopper(kind, watching)
        with closing(Proxy(port_of(url), limit, stopper.stop, from_clients=side == "target", **options)) as proxy:
            try:
                yield stopper, proxy, {f"{side}_url": DatabaseUrl(through(proxy, url)), **BOUNDS}
            finally:
                stopper.go_on()


def run_until_retry(shop, stopper, tables=(), **changes):
    """Run some tables, by default all; what has stopped goes on once one is retried. Return the events too."""
    events = []

    def observe(event):
        events.append(event)
        if event.kind == "table_retried":
            stopper.go_on()

    return etl.run(shop.settings_with(**changes), tables, observe=observe), events


@pytest.mark.parametrize("kind", ["process", "network"])
@pytest.mark.parametrize("phase", [FIRST_IN_ONE, FIRST_IN_RANGES, MERGE])
@pytest.mark.parametrize("side", SIDES)
def test_copy_that_stops_is_ended_and_retried(shop, side, phase, kind, wait_until):
    changes = {"load_range_blocks": 8} if phase == FIRST_IN_RANGES else {}
    if side == "source":
        shop.on_source("update orders set note = repeat('x', 1200)")  # more than the buffers of a connection hold
    if phase == MERGE:
        shop.run()
        touch_orders(shop)
    shop.configure({"defaults": {"batch_rows": 500}})
    limit = random.Random(f"{side} {phase} {kind}").randint(MARGIN_BYTES, COPIED_BYTES // 2)

    with stopped_at(shop, side, kind, limit) as (stopper, proxy, through_proxy):
        # Of one table: a small one would be read whole before its session stops, and nothing would have to wait.
        run, events = run_until_retry(shop, stopper, ["orders"], **changes, **through_proxy)

        assert proxy.has_acted.is_set()
    assert [table.error for table in run.tables] == [None]
    shop.run()
    (retried,) = [event for event in events if event.kind == "table_retried"]
    assert retried.message.startswith(f"public.{retried.table_name}: the session on the {side} was ended: no ")
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("messages", [20, 60, 120, 200, 280])
def test_target_that_stops_at_any_message_is_survived(shop, messages, wait_until):
    """When the session that holds the run lock waits for it, the run ends; the next one goes on."""
    shop.run()
    touch_orders(shop)
    shop.configure({"defaults": {"batch_rows": 500}})

    with stopped_at(shop, "target", "process", messages, in_messages=True) as (stopper, proxy, through_proxy):
        error, tables = None, ()
        try:
            tables = run_until_retry(shop, stopper, **through_proxy)[0].tables
        except UnavailableError as failure:
            error = failure

        assert proxy.has_acted.is_set()
    assert error is None or "the target" in str(error)
    assert [table.error for table in tables if table.error] == []
    wait_until(lambda: has_no_sessions(shop))
    shop.run()
    assert_whole(shop, wait_until)


def test_network_to_the_target_that_stops_ends_the_run(shop, wait_until):
    """The lock is still held on the server, so that no other run begins, until the network is there again."""
    url = shop.target_url

    def stop(_):
        proxy.flows.clear()

    with closing(Proxy(port_of(url), MARGIN_BYTES, stop, from_clients=True)) as proxy:
        with pytest.raises(UnavailableError):
            shop.run(target_url=DatabaseUrl(through(proxy, url)), **BOUNDS)
        with pytest.raises(UnavailableError, match="another run is in progress"):
            shop.run()
    wait_until(lambda: has_no_sessions(shop))
    shop.run()
    assert_whole(shop, wait_until)


def test_network_to_the_source_that_stops_is_waited_for(shop, wait_until):
    url = shop.source_url
    stopper = Stopper("network", None)

    def stop(_):
        proxy.flows.clear()
        stopper.go_on = proxy.flows.set

    with closing(Proxy(port_of(url), MARGIN_BYTES, stop, from_clients=False)) as proxy:
        run, _ = run_until_retry(shop, stopper, source_url=DatabaseUrl(through(proxy, url)), **BOUNDS)
    assert [table.error for table in run.tables] == [None, None]
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("kind", ["process", "network"])
def test_verify_ends_when_the_source_stops(shop, kind, wait_until):
    shop.run()
    shop.on_target("update raw.orders set note = 'other'")

    with stopped_at(shop, "source", kind, MARGIN_BYTES) as (_, proxy, through_proxy):
        verdicts = etl.verify(shop.settings_with(**through_proxy), ("orders",))

        assert proxy.has_acted.is_set()
    assert "the session on the source was ended: no byte of COPY moved for 1 s" in verdicts[0].error
    (repaired,) = etl.verify(shop.settings, ("orders",), is_repair=True)
    assert repaired.is_equal
    assert_whole(shop, wait_until)


@contextmanager
def stopped(connection):
    """Stop the process of the server that serves this session."""
    pid = connection.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.usefixtures("short_grace")
def test_query_of_a_stopped_process_is_ended(orders, side, wait_until):
    """It counts as busy, so it has the time of a slow statement."""
    query = orders.on_source if side == "source" else orders.on_target
    is_active = "select count(*) from pg_stat_activity where pid = %s and query like 'select pg_sleep%%'"
    with (
        closing(CONNECT[side](orders.settings_with(**BOUNDS))) as connection,
        connection.cursor() as cursor,
        ThreadPoolExecutor(1) as pool,
    ):
        pid = connection.info.backend_pid
        future = pool.submit(cursor.execute, "select pg_sleep(30)")
        wait_until(lambda: query(is_active, pid) == [(1,)])
        with stopped(connection):
            with pytest.raises(stalls.StalledError, match="no answer came within 4 s"):
                future.result(30)
            assert connection.closed
    wait_until(lambda: query("select count(*) from pg_stat_activity where pid = %s", pid) == [(0,)])


@pytest.mark.parametrize("side", SIDES)
def test_query_that_a_stopped_process_never_reads_is_ended(orders, side):
    settings = orders.settings_with(**BOUNDS | {"statement_timeout_seconds": 600.0})
    with (
        closing(CONNECT[side](settings)) as connection,
        connection.cursor() as cursor,
        stopped(connection),
        pytest.raises(stalls.StalledError, match="no answer came for 1 s"),
    ):
        cursor.execute("select 1")


@pytest.mark.parametrize("stops", ["the link", "the network"])
@pytest.mark.parametrize("side", SIDES)
def test_query_whose_answer_is_lost_is_ended(orders, side, stops):
    """Long before its timeout: the server is asked, in another session, whether it is in progress."""
    url = orders.source_url if side == "source" else orders.target_url
    with closing(Proxy(port_of(url), 1 << 40, lambda _: None, from_clients=True)) as proxy:
        changes = {f"{side}_url": DatabaseUrl(through(proxy, url)), **BOUNDS, "statement_timeout_seconds": 600.0}
        with closing(CONNECT[side](orders.settings_with(**changes))) as connection, connection.cursor() as cursor:
            (proxy.links[-1].flows if stops == "the link" else proxy.flows).clear()

            with pytest.raises(stalls.StalledError, match="no answer came for 1 s"):
                cursor.execute("select 1")


@pytest.mark.usefixtures("short_grace")
def test_commit_that_is_not_answered_is_ended(orders, wait_until):
    orders.on_target("create table kept (n int)")
    with closing(connect_target(orders.settings_with(**BOUNDS))) as connection, connection.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("insert into public.kept values (1)")
        with stopped(connection), pytest.raises(stalls.StalledError):
            cursor.execute("commit")
    wait_until(lambda: has_no_sessions(orders))
    assert orders.on_target("select count(*) from pg_locks where relation = 'kept'::regclass") == [(0,)]


def test_server_that_accepts_and_says_nothing_is_away(orders):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        with pytest.raises(UnavailableError, match="cannot connect to the source") as refusal:
            orders.run(source_url=DatabaseUrl(url), connect_timeout_seconds=2)
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize("side", SIDES)
def test_slow_statement_within_its_timeout_is_not_ended(orders, side):
    """Neither is a slow first byte of COPY, as that of a sort: the server says that it is in progress."""
    settings = orders.settings_with(stall_timeout_seconds=0.5)
    with closing(CONNECT[side](settings)) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_sleep(1.5)")
        with open(os.devnull, "wb") as nothing:
            copy_out(cursor, "copy (select from (select pg_sleep(1.5)) as s) to stdout", nothing, None)


def test_trickle_of_rows_is_no_stall(orders):
    """Less than fills a buffer comes at a time."""
    settings = orders.settings_with(stall_timeout_seconds=1.5)
    slow_rows = "copy (select repeat('x', 9000), pg_sleep(0.5) from generate_series(1, 6)) to stdout"
    with (
        closing(connect_source(settings)) as connection,
        connection.cursor() as cursor,
        open(os.devnull, "wb") as nothing,
    ):
        copy_out(cursor, slow_rows, nothing, None)


def test_pauses_of_our_own_are_no_stall(orders):
    """The throttle lets 64 kB pass in 2 s, and the target waits for them meanwhile."""
    orders.on_target("create table texts (t text)")
    settings = orders.settings_with(stall_timeout_seconds=0.7)
    statement = "copy (select repeat('x', 1000) from generate_series(1, 150)) to stdout"
    with (
        closing(connect_source(settings)) as source,
        closing(connect_target(settings)) as target,
        source.cursor() as reading,
        target.cursor() as writing,
    ):

        def write(into):
            copy_out(reading, statement, into, Throttle(1 << 15))

        with stream(write) as rows:
            assert copy_in(writing, "copy public.texts from stdin", rows) == 150


def read_user_timeout(connection):
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_dead_peer_is_noticed_by_the_kernel(orders):
    """A target that has no room for more rows has longer."""
    orders.on_target("create table texts (t text)")
    settings, found = orders.settings_with(stall_timeout_seconds=600.0), []
    with closing(connect_source(settings)) as source, closing(connect_target(settings)) as target:
        usual = read_user_timeout(source), read_user_timeout(target)

        def write(into):
            for _ in range(100):  # more than fits into the pipe, so it is being read
                into.write(b"x" * 9999 + b"\n")
            found.append(read_user_timeout(target))

        with stream(write) as rows, target.cursor() as cursor:
            assert copy_in(cursor, "copy public.texts from stdin", rows) == 100
        after = read_user_timeout(target)
    assert usual == (60_000, 60_000)
    assert found == [600_000]
    assert after == 60_000


# --- A run that has lost its lock ---


@pytest.fixture
def start_run():
    """A function that starts a run in a thread, and returns its future."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda replication, *table_names, observe=lambda _: None, **changes: pool.submit(
            etl.run, replication.settings_with(**changes), table_names, observe=observe
        )


def assert_lock_is_lost(future):
    with pytest.raises(UnavailableError, match="the run has lost its lock, because its session") as loss:
        future.result(30)
    assert loss.value.exit_code == 3
    assert not loss.value.is_transient


def test_run_without_its_lock_writes_nothing_beside_another(shop, start_run, wait_until):
    shop.run()
    touch_orders(shop)
    shop.configure({"defaults": {"batch_rows": 500}})
    ended, second = [], []

    def end_lock_session(event: Event):
        if event.kind == "batch_committed" and event.table_name == "orders" and not ended:
            ended.extend(shop.on_target(END_LOCK_SESSION))
            second.append(shop.run())

    assert_lock_is_lost(start_run(shop, observe=end_lock_session))

    assert ended == [(True,)]
    assert [table.error for table in second[0].tables] == [None, None]
    assert shop.on_target("select run_id, status from etl.runs order by run_id") == [
        (1, "succeeded"),
        (2, "died"),
        (3, "succeeded"),
    ]
    assert shop.on_target("select batches from etl.table_runs where run_id = 2 and table_name = 'orders'") == [(1,)]
    assert_whole(shop, wait_until)


def test_run_without_its_lock_ends_amid_a_lock_wait(shop, start_run, wait_until):
    """Long before the wait for the lock of a table would end."""
    shop.run()
    touch_orders(shop)
    blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'tidemark'"
    with closing(psycopg2.connect(shop.target_url)) as blocker:
        execute(blocker, "lock table raw.orders")
        future = start_run(shop, lock_timeout_seconds=600.0)
        wait_until(lambda: shop.on_target(blocked) == [(1,)])

        assert shop.on_target(END_LOCK_SESSION) == [(True,)]

        assert_lock_is_lost(future)
        wait_until(lambda: shop.on_target(blocked) == [(0,)])
    shop.run()
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("side", SIDES)
def test_run_without_its_lock_ends_amid_a_copy(shop, start_run, side, wait_until):
    with stopped_at(shop, side, "network", MARGIN_BYTES) as (_, proxy, through_proxy):
        changes = {name: value for name, value in through_proxy.items() if name not in BOUNDS}
        future = start_run(shop, "orders", **changes)
        wait_until(proxy.has_acted.is_set)

        assert shop.on_target(END_LOCK_SESSION) == [(True,)]

        assert_lock_is_lost(future)
    wait_until(lambda: has_no_sessions(shop))
    assert shop.on_target("select to_regclass('raw.orders')") == [(None,)]
    shop.run()
    assert_whole(shop, wait_until)
