"""What the source feels of a run: few sessions, all bounded and read-only, weak locks, and snapshots held briefly."""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psycopg2
import pytest

import etl
from etl.postgres.sessions import connect_source
from tests.integration.etl.faults import make_ledger
from tests.results import pick, statuses

NAMES = [f"table_{number}" for number in range(1, 9)]
SESSIONS = """
    select application_name from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""
BLOCKED = """
    select count(*), coalesce(bool_and(clock_timestamp() - query_start > interval '0.3 s'), false)
    from pg_stat_activity
    where application_name = 'tidemark' and datname = current_database() and wait_event_type = 'Lock'
"""
LOCKS = """
    select l.locktype, l.mode, n.nspname, c.relname
    from pg_locks as l
    join pg_stat_activity as a on a.pid = l.pid
    left join pg_class as c on c.oid = l.relation and l.database = (
        select oid from pg_database where datname = current_database()
    )
    left join pg_namespace as n on n.oid = c.relnamespace
    where a.application_name = 'tidemark' and a.datname = current_database()
"""
OLDEST_TRANSACTION = """
    select min(xact_start) from pg_stat_activity
    where application_name = 'tidemark' and datname = current_database()
"""
IS_CONSTRAINED = "select count(*) from pg_constraint where conname = 'queued'"
CONSTRAIN = "alter table table_1 add constraint queued check (item_id > 0) not valid"
# A first load ends with ALTER TABLE; sessions wait there while somebody has locked the gate.
MAKE_GATE = """
    create table public.gate ();
    create function public.wait_at_gate() returns event_trigger language plpgsql as $$
    begin
        lock table public.gate in access share mode;
    end $$;
    create event trigger gate on ddl_command_end when tag in ('ALTER TABLE') execute function public.wait_at_gate();
"""


@pytest.fixture
def tables(replication):
    """Eight replicated tables of 30 rows, all of which have changed since."""
    make_tables(replication, 30, *NAMES)
    replication.run()
    change(replication, *NAMES)
    return replication


@pytest.fixture
def start_run():
    """A function that starts a run in a thread, and returns its future."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda replication, **changes: pool.submit(replication.run, **changes)


@pytest.fixture
def sessions(monkeypatch):
    """The sessions that runs open on the source: their settings, and how many were open with each."""
    found, connections, lock = [], [], threading.Lock()

    def connect(*arguments, **named):
        connection = connect_source(*arguments, **named)
        with connection.cursor() as cursor:
            cursor.execute("select name, setting from pg_settings")
            settings = dict(cursor.fetchall())
        with lock:
            connections.append(connection)
            found.append(SimpleNamespace(settings=settings, open_now=sum(not one.closed for one in connections)))
        return connection

    monkeypatch.setattr("etl.postgres.sessions.connect_source", connect)
    return found


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, in seconds, which are recorded instead of spent."""
    found = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=found.append))
    return found


def make_tables(replication, rows, *names):
    for name in names:
        replication.on_source(
            f"create table {name} (item_id bigint generated always as identity primary key, "
            f"note text not null default '', updated_at timestamptz not null default clock_timestamp()); "
            f"create index on {name} (updated_at)"
        )
        replication.on_source(f"insert into {name} (note) select repeat('x', 100) from generate_series(1, %s)", rows)


def change(replication, *names):
    for name in names:
        replication.on_source(f"update {name} set note = note || '!', updated_at = clock_timestamp()")


@contextlib.contextmanager
def locked(url, mode, *labels):
    """Lock tables, of the target against batches or of the source against readers."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"lock table {', '.join(labels)} in {mode} mode")
        yield


@contextlib.contextmanager
def held_batches(replication, *names):
    """Let later runs come as far as the merge of these tables, and wait there."""
    with locked(replication.target_url, "exclusive", *[f"raw.{name}" for name in names]):
        yield


@contextlib.contextmanager
def held_first_loads(replication):
    """Let first loads come as far as the key of their tables, and wait there."""
    replication.on_target(MAKE_GATE)
    with locked(replication.target_url, "access exclusive", "public.gate"):
        yield


def count_blocked(replication):
    return replication.on_target(BLOCKED)[0][0]


def have_waited(replication):
    """Tell whether all that are blocked have been so for a while, in which others of their run could begin."""
    return replication.on_target(BLOCKED)[0][1]


def assert_equal(replication, *names):
    for name in names:
        source, raw = replication.rows(name)
        assert source == raw


# ---------------------------------------------------------------------------------------------------------------------
# Sessions


@pytest.mark.parametrize(
    ("parallel_tables", "max_connections_source", "workers"), [(8, 3, 2), (2, 10, 2), (1, 2, 1), (8, 2, 1), (5, 6, 5)]
)
def test_run_stays_within_its_session_limit(
    tables, sessions, start_run, wait_until, parallel_tables, max_connections_source, workers
):
    """One session holds the snapshot, the others read: all of them are at work while their batches are held."""
    with held_batches(tables, *NAMES):
        run = start_run(tables, parallel_tables=parallel_tables, max_connections_source=max_connections_source)
        wait_until(lambda: count_blocked(tables) >= workers and have_waited(tables))
        found = tables.on_source(SESSIONS)

    assert statuses(run.result()) == dict.fromkeys(NAMES, "succeeded")
    assert found == [("tidemark",)] * (workers + 1)
    assert max(session.open_now for session in sessions) == workers + 1
    assert_equal(tables, *NAMES)


def test_every_session_is_read_only_and_bounded(tables, sessions):
    tables.run(statement_timeout_seconds=7, lock_timeout_seconds=3, max_snapshot_seconds=20)

    holders = [one.settings for one in sessions if one.settings["idle_in_transaction_session_timeout"] == "27000"]
    readers = [one.settings for one in sessions if one.settings["idle_in_transaction_session_timeout"] == "7000"]
    assert len(holders) + len(readers) == len(sessions)
    assert 1 <= len(readers) <= tables.settings.workers  # for 8 tables
    assert holders, "expected a session that holds the snapshot, found none"
    for settings in holders + readers:
        assert settings["application_name"] == "tidemark"
        assert settings["default_transaction_read_only"] == "on"
        assert settings["row_security"] == "off"
        assert settings["search_path"] == ""
        assert settings["statement_timeout"] == "7000"
        assert settings["lock_timeout"] == "3000"


def test_no_session_is_left_after_a_run(tables, wait_until):
    tables.on_target("alter table raw.table_1 drop column _etl_synced_at")  # one table fails

    tables.run()

    wait_until(lambda: tables.on_source(SESSIONS) == [])


def test_rows_are_read_no_faster_than_allowed_over_all_tables(replication):
    names = ("one", "two")
    make_tables(replication, 3000, *names)

    result = replication.run(*names, max_source_mb_per_second=1.0)

    (size,) = replication.on_target("select sum(bytes_read)::bigint from etl.table_runs")[0]
    assert size > 500_000
    assert result.seconds >= size / 1_000_000
    assert_equal(replication, *names)


# ---------------------------------------------------------------------------------------------------------------------
# Locks


def assert_only_reads_two_tables(found):
    assert {row[:2] for row in found} == {("relation", "AccessShareLock"), ("virtualxid", "ExclusiveLock")}
    locked_tables = {row[3] for row in found if row[2] == "public" and not row[3].endswith(("_pkey", "_idx"))}
    assert len(locked_tables) == 2
    assert locked_tables <= set(NAMES)


def test_later_run_takes_only_the_weakest_lock(tables, start_run, wait_until):
    with held_batches(tables, *NAMES):
        run = start_run(tables)
        wait_until(lambda: count_blocked(tables) == 2)
        found = tables.on_source(LOCKS)

    assert not run.result().has_failures
    assert_only_reads_two_tables(found)


def test_first_load_takes_only_the_weakest_lock(replication, start_run, wait_until):
    make_ledger(replication)
    make_tables(replication, 30, "table_1", "table_2")
    with held_first_loads(replication):
        run = start_run(replication)
        wait_until(lambda: count_blocked(replication) == 2)
        found = replication.on_source(LOCKS)

    assert not run.result().has_failures
    assert_only_reads_two_tables(found)


def test_waiting_ddl_is_blocked_for_one_batch_at_most(tables, start_run, wait_until, waits):
    """The batch is held on the target for good; its lock timeout ends it, and with it the lock on the source."""
    tables.on_source("set lock_timeout = '15s'")
    with held_batches(tables, "table_1"):
        run = start_run(tables, lock_timeout_seconds=0.5, max_attempts=40)
        wait_until(lambda: count_blocked(tables) == 1)
        tables.on_source(CONSTRAIN)
        is_held = not run.done()

    result = {table.table_name: table for table in run.result().tables}
    assert is_held, "the run ended before the reader's lock was waited for"
    assert result["table_1"].status == "succeeded"
    assert result["table_1"].retries == len(waits) >= 1
    assert {result[name].retries for name in NAMES[1:]} == {0}
    assert_equal(tables, *NAMES)


def test_waiting_ddl_goes_first_once_the_snapshot_has_expired(tables, wait_until):
    tables.configure({"defaults": {"batch_rows": 10}})
    constrained = []
    with ThreadPoolExecutor(1) as pool, contextlib.closing(psycopg2.connect(tables.source_url)) as other:
        other.autocommit = True

        def constrain():
            with other.cursor() as cursor:
                cursor.execute("set lock_timeout = '15s'")
                cursor.execute(CONSTRAIN)

        def observe(event):
            if event.kind != "batch_committed":
                return
            constrained.append(tables.on_source(IS_CONSTRAINED)[0][0])
            if len(constrained) == 1:
                pool.submit(constrain)
                wait_until(
                    lambda: tables.on_source("select count(*) from pg_locks where not granted") == [(1,)], seconds=5
                )

        settings = dataclasses.replace(tables.settings, max_snapshot_seconds=0)
        result = etl.run(settings, ("table_1",), observe=observe)

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert len(constrained) > 2
    assert constrained == [0] + [1] * (len(constrained) - 1)
    assert_equal(tables, "table_1")


@pytest.mark.parametrize("watermark", ["updated_at", "item_id", None])
def test_run_does_not_wait_forever_behind_an_exclusive_lock(tables, waits, watermark):
    tables.configure({"tables": {"table_1": {"watermark": watermark}}})

    with locked(tables.source_url, "access exclusive", "table_1"):
        result = tables.run(lock_timeout_seconds=0.05, max_attempts=3)

    found = {table.table_name: table for table in result.tables}
    assert pick(found["table_1"], "status", "retries") == ("failed", 2)
    assert len(waits) == 2
    assert found["table_1"].error.startswith("public.table_1: the source answered: canceling statement due to lock")
    assert found["table_1"].error.endswith(
        "(SQLSTATE 55P03): see what holds the lock on the source in pg_locks, or raise ETL_LOCK_TIMEOUT_SECONDS"
    )
    assert {(found[name].status, found[name].retries) for name in NAMES[1:]} == {("succeeded", 0)}
    assert_equal(tables, *NAMES[1:])


def test_run_continues_once_an_exclusive_lock_is_released(tables, waits):
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tables.source_url, "access exclusive", "table_1"))

        def observe(event):
            if event.kind == "table_retried":
                stack.close()

        settings = dataclasses.replace(tables.settings, lock_timeout_seconds=0.05)
        result = etl.run(settings, ("table_1",), observe=observe)

    (table,) = result.tables
    assert pick(table, "status", "retries") == ("succeeded", 1)
    assert len(waits) == 1
    assert_equal(tables, "table_1")


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots


def observe_snapshots(replication, wait_until, *, batches_each=1):
    """Return an observer which asserts that no snapshot serves more batches than these, and the events' kinds."""
    kinds, commits = [], []

    def is_younger():
        (oldest,) = replication.on_source(OLDEST_TRANSACTION)[0]
        return oldest is None or len(commits) < batches_each or oldest > commits[-batches_each]

    def observe(event):
        kinds.append(event.kind)
        if event.kind == "batch_committed":
            wait_until(is_younger, seconds=5)  # a session that was closed takes a moment to go
            commits.extend(replication.on_source("select clock_timestamp()")[0])

    return observe, kinds


@pytest.mark.parametrize("watermark", ["updated_at", None])
def test_expired_snapshot_is_released_after_the_current_batch(tables, wait_until, watermark):
    tables.configure({"defaults": {"batch_rows": 10, "watermark": watermark}})
    observe, kinds = observe_snapshots(tables, wait_until)

    settings = dataclasses.replace(tables.settings, max_snapshot_seconds=0)
    result = etl.run(settings, ("table_1",), observe=observe)

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert kinds.count("batch_committed") == kinds.count("table_continued") + 1 >= 4
    assert_equal(tables, "table_1")


def test_first_load_releases_expired_snapshot_after_its_range(replication, wait_until):
    """A snapshot serves one range, and the last one brings all of them up to date."""
    make_tables(replication, 500, "table_1")
    observe, kinds = observe_snapshots(replication, wait_until, batches_each=2)

    settings = dataclasses.replace(replication.settings, max_snapshot_seconds=0, load_range_blocks=2)
    result = etl.run(settings, (), observe=observe)

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert kinds.count("batch_committed") == kinds.count("table_continued") + 2 >= 5
    assert_equal(replication, "table_1")


def test_table_continuation_is_reported_once(replication):
    make_tables(replication, 500, "table_1", "table_2")

    finished = replication.command("run", ETL_MAX_SNAPSHOT_SECONDS="0", ETL_LOAD_RANGE_BLOCKS="2")

    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("table_1: continues at newer snapshots") == 1
    assert finished.stderr.count("table_2: continues at newer snapshots") == 1


def test_unstarted_tables_wait_for_the_next_snapshot(tables, wait_until):
    observe, _ = observe_snapshots(tables, wait_until)
    distinct = "select count(distinct snapshot) from etl.table_runs where run_id = %s"

    settings = dataclasses.replace(tables.settings, max_snapshot_seconds=0, parallel_tables=1)
    brief = etl.run(settings, (), observe=observe)
    usual = tables.run(parallel_tables=1)

    assert not brief.has_failures, f"expected that every table succeeds, found {brief}"
    assert tables.on_target(distinct, brief.run_id) == [(8,)]
    assert tables.on_target(distinct, usual.run_id) == [(1,)]
    assert_equal(tables, *NAMES)


def test_large_primary_key_is_built_without_holding_a_snapshot(replication, start_run, wait_until):
    """Building it takes long, and needs nothing of the source."""
    make_ledger(replication)
    make_tables(replication, 500, "table_1")
    with held_first_loads(replication):
        run = start_run(replication, load_range_blocks=2, max_snapshot_seconds=0)
        wait_until(lambda: count_blocked(replication) == 1)
        wait_until(lambda: replication.on_source(OLDEST_TRANSACTION) == [(None,)], seconds=2)

    assert not run.result().has_failures
    assert_equal(replication, "table_1")


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is written


@pytest.fixture
def next_xid(replication, wait_until):
    """A function that returns the next transaction id of the source, which nothing but the test moves on."""
    replication.on_source("alter system set autovacuum = off")
    replication.on_source("select pg_reload_conf()")
    wait_until(lambda: replication.on_source("show autovacuum") == [("off",)])
    workers = "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'"
    wait_until(lambda: replication.on_source(workers) == [(0,)])
    yield lambda: replication.on_source("select pg_snapshot_xmax(pg_current_snapshot())")[0][0]
    replication.on_source("alter system reset autovacuum")
    replication.on_source("select pg_reload_conf()")


def test_source_assigns_no_transaction_id_to_a_run(replication, next_xid):
    """Whatever writes, a temporary table too, would be given one."""
    make_tables(replication, 500, *NAMES)

    def run_and_count(**changes):
        before = next_xid()
        result = replication.run(**changes)
        assert next_xid() == before
        return [table.status for table in result.tables].count("failed")

    first_load = run_and_count()
    replication.on_target("drop table raw.table_1")
    load_in_ranges = run_and_count(load_range_blocks=2, max_snapshot_seconds=0)
    change(replication, *NAMES)
    replication.on_target("alter table raw.table_2 add check (item_id <> 7) not valid")
    with_a_rejected_row = run_and_count()
    replication.on_target("alter table raw.table_3 drop column _etl_synced_at")
    with_a_failure = run_and_count()
    before = next_xid()
    change(replication, "table_1")

    assert (first_load, load_in_ranges, with_a_rejected_row, with_a_failure) == (0, 0, 0, 1)
    assert replication.on_target("select count(*) from etl.rejected_rows") == [(1,)]
    assert next_xid() > before
