"""The ledger in schema `etl` shows what every run did."""

import dataclasses
import signal
import subprocess
import sys
import threading
from contextlib import closing
from types import SimpleNamespace

import psycopg2
import psycopg2.errors
import pytest

import etl
from etl.errors import ConfigurationError, LockHeldError, UnavailableError
from etl.ledger import locks
from etl.ledger.runs import start_table
from tests.results import pick, statuses

TABLE_RUN = """
    select status, snapshot, watermark_before, watermark_after, fence_wait_seconds, batches, rows_read, rows_inserted,
        rows_updated, rows_unchanged, rows_rejected, rows_deleted, bytes_read, retries, error, started_at, ended_at
    from etl.table_runs where run_id = %s and table_name = %s
"""
WATERMARKS = "select table_name, watermark from etl.watermarks order by table_name"


def make_table(replication, name, rows):
    replication.on_source(
        f"create table {name} (item_id int primary key, note text not null default '', "
        f"updated_at timestamptz not null default clock_timestamp()); create index on {name} (updated_at)"
    )
    add_rows(replication, name, 1, rows)


def add_rows(replication, name, first, last):
    replication.on_source(f"insert into {name} (item_id) select generate_series(%s, %s)", first, last)


def change(replication, name, last):
    replication.on_source(
        f"update {name} set note = note || '!', updated_at = clock_timestamp() where item_id <= %s", last
    )


def configure(replication, **defaults):
    replication.configure({"defaults": defaults})


def table_run(replication, run_id, table_name):
    """Return a row of etl.table_runs by the names of its columns."""
    with replication.target.cursor() as cursor:
        cursor.execute(TABLE_RUN, (run_id, table_name))
        (row,) = cursor.fetchall()
        return dict(zip([column.name for column in cursor.description], row, strict=True))


def runs(replication):
    return replication.on_target("select run_id, status, error from etl.runs order by run_id")


@pytest.fixture
def items(replication):
    """A source with two tables, of 30 and of 5 rows."""
    make_table(replication, "items", 30)
    make_table(replication, "others", 5)
    return replication


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, in seconds, which are recorded instead of spent."""
    found = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=found.append))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


def test_first_load_records_the_run_and_each_table(items):
    result = items.run()

    (run,) = items.on_target("select run_id, status, error, started_at, ended_at from etl.runs")
    watermarks = dict(items.on_target(WATERMARKS))
    assert run[:3] == (result.run_id, "succeeded", None)
    assert items.on_target("select run_id, table_name from etl.table_runs order by 2") == [
        (result.run_id, "items"),
        (result.run_id, "others"),
    ]
    for name, rows in (("items", 30), ("others", 5)):
        found = table_run(items, result.run_id, name)
        assert pick(found, "status", "batches", "retries", "error") == ("succeeded", 1, 0, None)
        assert pick(found, "rows_read", "rows_inserted", "rows_updated", "rows_unchanged") == (rows, rows, 0, 0)
        assert pick(found, "rows_rejected", "rows_deleted") == (0, 0)
        assert found["watermark_before"] is None
        assert found["watermark_after"] == watermarks[name]
        assert found["bytes_read"] > rows * 8
        assert run[3] <= found["started_at"] <= found["ended_at"] <= run[4]


def test_the_tables_of_a_run_name_the_snapshot_they_share(items):
    first, second = items.run(), items.run()

    snapshots = [
        items.on_target("select distinct snapshot from etl.table_runs where run_id = %s", run.run_id)
        for run in (first, second)
    ]
    assert [len(found) for found in snapshots] == [1, 1]
    assert snapshots[0] != snapshots[1]
    assert [found for found in snapshots if not found[0][0]] == []


def test_later_run_records_what_changed(items):
    """Rows are new, changed, as they were, or refused; together they are those that were read."""
    configure(items, batch_rows=10, lookback_seconds=3600)
    items.run()
    items.on_target("alter table raw.items add check (item_id <> 31) not valid")
    add_rows(items, "items", 31, 33)
    change(items, "items", 4)
    items.on_source("update items set item_id = item_id where item_id between 5 and 30")  # new versions, same content
    before = dict(items.on_target(WATERMARKS))

    result = items.run()

    found = table_run(items, result.run_id, "items")
    after = dict(items.on_target(WATERMARKS))
    assert pick(found, "rows_read", "rows_inserted", "rows_updated", "rows_unchanged") == (33, 2, 4, 26)
    assert pick(found, "rows_rejected", "rows_deleted", "batches") == (1, 0, 4)
    assert found["watermark_before"] == before["items"]
    assert found["watermark_after"] == after["items"]
    assert before["items"] < after["items"]


@pytest.mark.parametrize("load_range_blocks", [1, 131_072], ids=["in ranges", "in one transaction"])
def test_run_result_equals_its_ledger_record(items, load_range_blocks):
    make_table(items, "large", 2000)
    items.configure({"defaults": {"batch_rows": 300}, "tables": {"missing": {}}})

    for _ in range(2):
        result = items.run(load_range_blocks=load_range_blocks, max_snapshot_seconds=0)
        for table in result.tables:
            found = table_run(items, result.run_id, table.table_name)
            names = ("rows_read", "rows_inserted", "rows_updated", "rows_unchanged", "rows_rejected", "rows_deleted")
            assert pick(found, "status", "error", "retries", *names) == (
                table.status,
                table.error,
                table.retries,
                *(getattr(table, name) for name in names),
            )
            assert pick(found, "bytes_read", "watermark_after") == (table.counts.bytes, table.watermark)
        assert list(statuses(result).items()) == [
            ("items", "succeeded"),
            ("large", "succeeded"),
            ("missing", "failed"),
            ("others", "succeeded"),
        ]
        for name in ("items", "others", "large"):
            change(items, name, 1000)


def test_rows_unchanged_can_only_be_computed(items):
    items.run()

    with pytest.raises(psycopg2.errors.GeneratedAlways):
        items.on_target("update etl.table_runs set rows_unchanged = 1")
    items.on_target("update etl.table_runs set rows_read = 100, rows_updated = 20, rows_rejected = 3")

    assert items.on_target("select table_name, rows_unchanged from etl.table_runs order by 1") == [
        ("items", 100 - 30 - 20 - 3),
        ("others", 100 - 5 - 20 - 3),
    ]


def test_run_without_changes_is_still_recorded(items):
    items.run()
    first = dict(items.on_target(WATERMARKS))

    result = items.run()

    found = table_run(items, result.run_id, "items")
    assert pick(found, "status", "rows_read", "rows_inserted", "rows_updated") == ("succeeded", 0, 0, 0)
    assert found["watermark_before"] == first["items"]
    assert runs(items) == [(1, "succeeded", None), (2, "succeeded", None)]


def test_failed_table_records_the_error_and_keeps_its_watermark(items):
    items.run()
    change(items, "items", 30)
    items.on_target("alter table raw.items drop column _etl_synced_at")
    before = dict(items.on_target(WATERMARKS))

    result = items.run()

    failed, succeeded = table_run(items, 2, "items"), table_run(items, 2, "others")
    assert pick(failed, "status", "error") == ("failed", result.tables[0].error)
    assert "raw.items does not fit public.items" in failed["error"]
    assert pick(failed, "watermark_before", "watermark_after") == (before["items"], None)
    assert pick(failed, "batches", "rows_read", "bytes_read") == (0, 0, 0)
    assert failed["ended_at"] >= failed["started_at"]
    assert pick(succeeded, "status", "error") == ("succeeded", None)
    assert runs(items)[1:] == [(2, "failed", "failed: items")]
    assert dict(items.on_target(WATERMARKS))["items"] == before["items"]


def test_table_that_could_not_start_is_recorded(items):
    items.configure({"tables": {"missing": {}}})

    result = items.run()

    found = table_run(items, result.run_id, "missing")
    assert pick(found, "status", "snapshot", "batches", "rows_read") == ("failed", None, 0, 0)
    assert "found none" in found["error"]
    assert runs(items) == [(1, "failed", "failed: missing")]


# ---------------------------------------------------------------------------------------------------------------------
# The wait at the fence


def test_fence_wait_is_recorded(items):
    items.run()
    waiting = items.open_source()
    with waiting, waiting.cursor() as cursor:
        cursor.execute("insert into others (item_id) values (99)")
        held = items.run(fence_wait_seconds=0.2)
    waiting.close()
    free = items.run(fence_wait_seconds=0.2)

    found = [table_run(items, run.run_id, "items")["fence_wait_seconds"] for run in (held, free)]
    assert found[0] >= 0.2
    assert found[1] < 0.2
    assert items.on_target("select count(*) from raw.others where item_id = 99") == [(1,)]


def test_the_waits_of_all_attempts_add_up(items, waits):
    items.run()
    locker = items.open_source()
    with locker, locker.cursor() as cursor:
        cursor.execute("lock table items in access exclusive mode")
        result = items.run("items", fence_wait_seconds=0.1, lock_timeout_seconds=0.05, max_attempts=3)
    locker.close()

    found = table_run(items, result.run_id, "items")
    assert pick(found, "status", "retries") == ("failed", len(waits)) == ("failed", 2)
    assert found["fence_wait_seconds"] >= 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Runs in a row, and runs that end otherwise


def test_run_ids_are_serial_and_failed_starts_use_none(items):
    items.run()
    with pytest.raises(ConfigurationError):
        items.run("nothing")
    items.on_target("select pg_advisory_lock(%s)", locks.RUN_LOCK_KEY)
    with pytest.raises(LockHeldError):
        items.run(lock_wait_seconds=0.05)
    items.on_target("select pg_advisory_unlock(%s)", locks.RUN_LOCK_KEY)

    items.run("items")
    items.run()

    assert [row[0] for row in runs(items)] == [1, 2, 3]
    assert items.on_target("select run_id, count(*) from etl.table_runs group by 1 order by 1") == [
        (1, 2),
        (2, 1),
        (3, 2),
    ]
    assert items.on_target(
        "select count(*) from etl.runs as one join etl.runs as other on one.run_id < other.run_id "
        "where one.ended_at > other.started_at"
    ) == [(0,)]


def test_a_run_that_died_is_marked_by_the_next(items, wait_until):
    """The first table is done when the run is killed, the second is at work."""
    items.run()
    for name in ("items", "others"):
        change(items, name, 30)
    holder = psycopg2.connect(items.target_url)
    with holder, holder.cursor() as cursor:
        cursor.execute("lock table raw.others in exclusive mode")
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "run"],
            env={**items.environment, "ETL_PARALLEL_TABLES": "1"},
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: items.on_target("select count(*) from pg_locks where not granted") == [(1,)])
        process.send_signal(signal.SIGKILL)
        process.wait()
    holder.close()
    left = runs(items)

    result = items.run(lock_wait_seconds=15)

    assert left[1] == (2, "running", None)
    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert runs(items) == [(1, "succeeded", None), (2, "died", "the run vanished"), (3, "succeeded", None)]
    assert items.on_target("select ended_at >= started_at from etl.runs") == [(True,)] * 3
    finished, died = table_run(items, 2, "items"), table_run(items, 2, "others")
    assert pick(finished, "status", "rows_updated") == ("succeeded", 30)
    assert pick(died, "status", "rows_updated", "watermark_after") == ("died", 0, None)
    assert died["ended_at"] >= died["started_at"]
    assert pick(table_run(items, 3, "others"), "status", "rows_updated") == ("succeeded", 5)


def interrupt(event):
    if event.kind == "batch_committed":
        raise KeyboardInterrupt


def test_interrupted_run_leaves_nothing_running(items):
    configure(items, batch_rows=10)
    items.run()
    change(items, "items", 30)

    with pytest.raises(KeyboardInterrupt):
        etl.run(items.settings, ("items",), observe=interrupt)

    found = table_run(items, 2, "items")
    assert runs(items)[1:] == [(2, "failed", "interrupted")]
    assert pick(found, "batches", "rows_updated", "watermark_after") == (1, 10, None)
    assert found["status"] in ("failed", "died")
    assert found["ended_at"] is not None


def test_interrupted_run_starts_no_further_table(items, wait_until):
    """The signal comes while the first of two tables is at work, which has more batches to go."""
    configure(items, batch_rows=3)
    items.run()
    change(items, "items", 30)
    main_thread = threading.get_ident()
    received = []

    def receive(*_):
        received.append(True)
        raise KeyboardInterrupt

    def send(event):
        if event.kind == "batch_committed" and not received:
            signal.pthread_kill(main_thread, signal.SIGINT)
            wait_until(lambda: received == [True])

    settings = dataclasses.replace(items.settings, parallel_tables=1)
    before = signal.signal(signal.SIGINT, receive)
    try:
        with pytest.raises(KeyboardInterrupt):
            etl.run(settings, (), observe=send)
    finally:
        signal.signal(signal.SIGINT, before)

    assert items.on_target("select table_name from etl.table_runs where run_id = 2") == [("items",)]
    assert runs(items)[1:] == [(2, "failed", "interrupted")]


def test_table_started_after_its_run_ended_is_not_recorded(items):
    """A thread that was about to begin when the run was interrupted comes to it late."""
    items.run()
    (run_id,) = items.on_target("select max(run_id) from etl.runs")[0]

    with closing(psycopg2.connect(items.target_url)) as session, session.cursor() as cursor:
        session.autocommit = True
        start_table(cursor, run_id, "late", watermark=None, snapshot="", fence_wait_seconds=0.5)

    assert items.on_target("select count(*) from etl.table_runs where table_name = 'late'") == [(0,)]


def test_aborted_run_leaves_nothing_running(items, read_as_role, waits):
    """After the first batch, the source lets its role connect no more."""
    configure(items, batch_rows=10)
    items.run()
    change(items, "items", 30)
    read_as_role(True)
    ((name,),) = items.on_source("select rolname from pg_roles where rolname ^@ ('reader_' || current_database())")

    def observe(event):
        if event.kind == "batch_committed":
            items.on_source(f"alter role {name} connection limit 0")

    settings = dataclasses.replace(items.settings, max_attempts=1, max_snapshot_seconds=0)
    with pytest.raises(UnavailableError, match="cannot connect to the source"):
        etl.run(settings, ("items",), observe=observe)

    found = table_run(items, 2, "items")
    ((_, status, error),) = runs(items)[1:]
    assert waits, "expected that the run waited for a connection, found that it did not"
    assert status == "failed"
    assert "too many connections for role" in error
    assert pick(found, "batches", "rows_updated") == (1, 10)
    assert found["status"] in ("failed", "died")


def test_finished_run_records_nothing_more_of_its_tables(items):
    run = items.run()
    before = table_run(items, run.run_id, "items")
    with items.target.cursor() as cursor:
        start_table(cursor, run.run_id, "items", watermark=None, snapshot="late", fence_wait_seconds=1)
        start_table(cursor, run.run_id, "late", watermark=None, snapshot="late", fence_wait_seconds=1)

    assert table_run(items, run.run_id, "items") == before
    assert items.on_target("select count(*) from etl.table_runs where table_name = 'late'") == [(0,)]
