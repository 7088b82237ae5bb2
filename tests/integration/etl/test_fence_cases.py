"""The fence in the situations of a real source: what holds a watermark, what must not, and what is refused."""

import datetime as dt
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from deploy.local.servers import make_private_folder
from etl.model import WatermarkKind
from etl.policy import fence
from etl.postgres.sql import quote_name
from etl.source import open_transactions
from etl.source.session import POINT_EXPRESSIONS, REPEATED_HOUR_SECONDS
from tests.integration.etl.clusters import copy_running, open_program, serve, serve_new
from tests.integration.etl.faults import crash, create_database, stop_fast
from tests.results import pick

LOOKBACK = {"lookback_seconds": 60}


@pytest.fixture(scope="module")
def source_server(servers_home, free_port):
    """The source of all tests here: a server of their own, that others can follow."""
    with serve_new(servers_home, "primary", free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def standby_server(source_server, free_port):
    """A hot standby of the source."""
    server = copy_running(source_server, "standby", free_port(), "-R")
    with serve(server):
        yield server


@pytest.fixture(scope="module")
def restartable_server(servers_home, free_port):
    """Another cluster, on which no fixture keeps a session open."""
    with serve_new(servers_home, "restartable", free_port()) as server:
        yield server


def watermarks_of(replication, table_name="orders"):
    """Return the watermark, its instant and the points that wait."""
    (found,) = replication.on_target(
        "select watermark, as_of, points from etl.watermarks where table_name = %s", table_name
    )
    return found


def assert_equal(replication, *table_names):
    for table_name in table_names:
        source, raw = replication.rows(table_name)
        assert source, f"{table_name} has no rows: nothing is compared"
        assert source == raw, f"rows of {table_name} in the source, and of raw"


def failure_of(replication, table_name, **changes):
    """Run one table, which has to fail, and return its error."""
    (result,) = replication.run(table_name, **changes).tables
    assert result.status == "failed"
    return result.error


def notices_of(replication):
    return [event.message for event in replication.events if event.kind == "notice"]


def remedy_in(message):
    """Return the statement that a message asks to run, as a person would copy it."""
    return re.search(r"run on the source: ([^;]*)", message)[1]


def add_order(connection, note):
    with connection.cursor() as cursor:
        cursor.execute("insert into orders (total, note) values (1, %s)", (note,))


def has_order(replication, note):
    return replication.on_target("select count(*) from raw.orders where note = %s", note) == [(1,)]


@pytest.fixture
def open_session() -> Iterator[Callable[..., Any]]:
    """A function that opens a session that is closed at the end, whatever happens."""
    sessions = []

    def open_one(replication, *, autocommit=False, **parameters):
        session = psycopg2.connect(replication.source_url, **parameters)
        session.autocommit = autocommit
        sessions.append(session)
        return session

    yield open_one
    for session in sessions:
        session.close()


# --- Several transactions of one session ---

WAIT_AT_COMMIT = """
    create function wait_at_commit() returns trigger language plpgsql
        as 'begin perform pg_advisory_lock(1); return null; end';
    create constraint trigger wait_at_commit after insert on orders deferrable initially deferred
        for each row when (new.note = 'one') execute function wait_at_commit()
"""
INSERT = "insert into orders (total, note) values (1, '{}')"
# Two transactions of which the second takes its now() from before the first has ended. The first waits for
# advisory lock 1 while it is open, the second for lock 2.
TWO_TRANSACTIONS = {
    "in one message": [
        f"begin; {INSERT.format('one')}; select pg_advisory_lock(1); commit; "
        f"begin; select pg_advisory_lock(2); {INSERT.format('two')}; commit"
    ],
    "by commit and chain": [
        WAIT_AT_COMMIT,
        f"begin; {INSERT.format('one')}",
        "commit and chain",
        f"select pg_advisory_lock(2); {INSERT.format('two')}; commit",
    ],
}
two_transactions = pytest.mark.parametrize("way", TWO_TRANSACTIONS)


def execute_all(connection, statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def run_between_two_transactions(orders, way, wait_until):
    """Run while the first transaction is open, run while the second is, and run after it."""
    orders.run_one("orders")
    gate, writer = orders.open_source(), orders.open_source()
    gate.autocommit = writer.autocommit = True

    def wait_for_gate(number):
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = %s"
        wait_until(lambda: orders.on_source(waiting, number) == [(1,)])

    # Closed from the right: the gate first, for the writer waits at it.
    with ThreadPoolExecutor(1) as pool, closing(writer), closing(gate):
        execute_all(gate, ["select pg_advisory_lock(1), pg_advisory_lock(2)"])
        writing = pool.submit(execute_all, writer, TWO_TRANSACTIONS[way])
        wait_for_gate(1)
        add_order(orders.source, "younger")
        orders.run_one("orders")
        execute_all(gate, ["select pg_advisory_unlock(1)"])
        wait_for_gate(2)
        orders.run_one("orders")
        execute_all(gate, ["select pg_advisory_unlock(2)"])
        writing.result(timeout=20)
    orders.run_one("orders")


@two_transactions
def test_second_transaction_is_seen_with_pg_read_all_stats(orders, read_as_role, way, wait_until):
    read_as_role(True)

    run_between_two_transactions(orders, way, wait_until)

    assert has_order(orders, "two")
    assert_equal(orders, "orders")
    assert not [notice for notice in notices_of(orders) if "pg_read_all_stats" in notice]


@two_transactions
def test_second_transaction_needs_a_lookback_without_the_grant(orders, read_as_role, way, wait_until):
    read_as_role(False)

    run_between_two_transactions(orders, way, wait_until)
    is_missed = not has_order(orders, "two")
    orders.configure({"tables": {"orders": LOOKBACK}})
    orders.run_one("orders")

    assert is_missed, "expected that the row is missed without a lookback, found it in raw"
    assert_equal(orders, "orders")


@two_transactions
def test_lookback_covers_the_second_transaction_from_the_start(orders, read_as_role, way, wait_until):
    read_as_role(False)
    orders.configure({"tables": {"orders": LOOKBACK}})

    run_between_two_transactions(orders, way, wait_until)

    assert_equal(orders, "orders")


def test_missing_pg_read_all_stats_is_recommended_once(orders, read_as_role):
    read_as_role(False)

    orders.run_one("orders")

    (notice,) = [notice for notice in notices_of(orders) if "pg_read_all_stats" in notice]
    assert remedy_in(notice) == "grant pg_read_all_stats to the role of SOURCE_DATABASE_URL"


def prepare_between_listings(monkeypatch, writer):
    """Let the writer prepare its transaction between the two listings by which a run settles points.

    Whatever their order: a run lists once to take its points, then once more with `fence_wait_seconds` 0.
    """
    listings = itertools.count(1)

    def spied(listing):
        def listing_and_prepare(cursor):
            found = listing(cursor)
            if next(listings) == 3:
                execute_all(writer, ["prepare transaction 'between listings'"])
            return found

        return listing_and_prepare

    for name in ("list_transactions", "list_starts"):
        monkeypatch.setattr(open_transactions, name, spied(getattr(open_transactions, name)))


def test_transaction_prepared_between_two_listings_is_seen(orders, read_as_role, open_session, monkeypatch):
    read_as_role(False)
    orders.run_one("orders")
    writer = open_session(orders, autocommit=True)
    execute_all(writer, ["begin", INSERT.format("prepared")])
    add_order(orders.source, "younger")
    orders.run_one("orders")
    held = watermarks_of(orders)[0]

    with monkeypatch.context() as patching:
        prepare_between_listings(patching, writer)
        orders.run_one("orders", fence_wait_seconds=0.0)
    prepared = orders.on_source("select gid from pg_prepared_xacts where database = current_database()")
    during = watermarks_of(orders)[0]
    orders.on_source("commit prepared 'between listings'")
    orders.run_one("orders")

    assert prepared == [("between listings",)]
    assert during == held
    assert has_order(orders, "prepared")
    assert_equal(orders, "orders")


# --- Integer watermarks ---


def make_events(replication, options, name="events", **config):
    replication.on_source(
        sql.SQL(f"create table {{}} (event_id bigint {options} primary key, note text)").format(sql.Identifier(name))
    )
    replication.configure({"tables": {name: {"watermark": "event_id", **config}}})


def add_event(connection, name="events"):
    """Insert an event that takes its number from the sequence; return the number."""
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("insert into {} (note) values ('') returning event_id").format(sql.Identifier(name)))
        return cursor.fetchone()[0]


@pytest.mark.parametrize("name", ["events", 'Odd "Events"'])
@pytest.mark.parametrize("options", ["cache 20", "increment by 2"])
def test_out_of_order_sequence_is_rejected_until_fixed(replication, open_session, name, options):
    make_events(replication, f"generated always as identity ({options})", name)
    one, two = open_session(replication, autocommit=True), open_session(replication, autocommit=True)
    before = [add_event(one, name), add_event(two, name)]

    error = failure_of(replication, name)
    statement = remedy_in(error)
    execute_all(open_session(replication, autocommit=True), [statement])
    replication.run_one(name)
    after = [add_event(one, name), add_event(two, name), add_event(one, name)]
    replication.run_one(name)

    assert "an integer watermark needs numbers handed out in order" in error
    assert statement.startswith("alter sequence public.")
    assert statement.endswith("cache 1 increment by 1")
    assert after == sorted(after)
    assert after[0] > before[-1]
    assert_equal(replication, name)


@pytest.mark.parametrize(("lookback_rows", "arrives"), [(1, False), (20, True)])
def test_out_of_order_numbers_arrive_within_lookback_rows(replication, open_session, lookback_rows, arrives):
    make_events(replication, "generated always as identity (cache 20)", lookback_rows=lookback_rows)
    one, two = open_session(replication, autocommit=True), open_session(replication, autocommit=True)
    numbers = [add_event(one), add_event(two)]
    replication.run_one("events")
    numbers += [add_event(one), add_event(two)]
    replication.run_one("events")

    found = replication.on_target("select event_id from raw.events order by event_id")

    assert numbers == [1, 21, 2, 22]
    assert ((2,) in found) is arrives
    assert (22,) in found


def test_application_numbers_are_rejected_without_lookback_rows(replication):
    make_events(replication, "")
    replication.on_source("insert into events values (10)")

    error = failure_of(replication, "events")
    replication.configure({"tables": {"events": {"watermark": "event_id", "lookback_rows": 5}}})
    replication.run_one("events")
    replication.on_source("insert into events values (6)")
    replication.run_one("events")

    assert "no sequence of its own" in error
    assert "lookback_rows" in error
    assert_equal(replication, "events")


def test_lookback_rows_loads_lower_integers_added_later(replication):
    make_events(replication, "generated by default as identity")
    replication.on_source("insert into events select n, '' from generate_series(10, 20) as n")
    replication.on_source("select setval('events_event_id_seq', 20)")
    replication.run_one("events")
    replication.on_source("insert into events values (5, 'lower')")
    replication.run_one("events")
    without = replication.on_target("select count(*) from raw.events where note = 'lower'")

    replication.configure({"tables": {"events": {"watermark": "event_id", "lookback_rows": 15}}})
    replication.run_one("events")

    assert without == [(0,)]
    assert_equal(replication, "events")


def test_restarted_sequence_stops_only_its_table(orders):
    make_events(orders, "generated always as identity")
    orders.on_source("insert into events (note) select '' from generate_series(1, 5)")
    orders.run()
    orders.on_source("truncate events; alter sequence events_event_id_seq restart")
    orders.on_source("insert into events (note) values ('first again')")
    add_order(orders.source, "another")

    events, others = orders.run().tables
    kept = orders.on_target("select count(*) from raw.events")
    watermark = watermarks_of(orders, "events")[0]
    orders.on_target("drop table raw.events")
    orders.run_one("events")

    assert {"events": events.status, "others": others.status} == {"events": "failed", "others": "succeeded"}
    assert "the watermark is 5, but the source has max(event_id) = 1" in events.error
    assert "its sequence is at 1" in events.error
    assert "`etl reset events`" in events.error
    assert (kept, watermark) == ([(5,)], "5")
    assert_equal(orders, "events", "orders")


# --- Times that the source does not stamp in order ---


@pytest.mark.parametrize(
    ("kind", "lag", "lookback_seconds"),
    [
        ("timestamptz", "30 seconds", 60),
        ("timestamp", "90 minutes", 7200),  # points are set back by an hour for the autumn anyhow
        ("date", "2 days", 3 * 86_400),
    ],
)
def test_rows_of_a_lagging_clock_arrive_within_the_lookback(replication, kind, lag, lookback_seconds):
    replication.on_source(f"create table notes (note_id int primary key, updated_at {kind} not null default now())")
    replication.on_source("insert into notes values (1)")
    replication.run_one("notes")
    replication.on_source(f"insert into notes values (2, now() - interval '{lag}')")
    replication.run_one("notes")
    without = replication.on_target("select count(*) from raw.notes")

    replication.configure({"tables": {"notes": {"lookback_seconds": lookback_seconds}}})
    replication.run_one("notes")

    assert without == [(1,)]
    assert_equal(replication, "notes")


def simulate_clock_set_back(replication, seconds):
    """Leave the target as if the last run had read a clock that was ahead of the present one."""
    replication.on_target(
        "update etl.watermarks set as_of = as_of + make_interval(secs => %s),"
        " watermark = (watermark::timestamptz + make_interval(secs => %s))::text",
        seconds,
        seconds,
    )


def test_source_clock_set_back_stops_the_table_without_lookback(orders):
    orders.run_one("orders")
    simulate_clock_set_back(orders, 3600)
    add_order(orders.source, "by the new clock")

    error = failure_of(orders, "orders", fence_margin_seconds=5.0)
    is_missing = not has_order(orders, "by the new clock")
    orders.configure({"tables": {"orders": {"lookback_seconds": 4000}}})
    orders.run_one("orders", fence_margin_seconds=5.0)

    assert "lookback_seconds" in error
    assert re.search(r"the source's clock is 36\d\d s behind", error)
    assert is_missing, "expected that the row by the new clock is missed, found it in raw"
    assert_equal(orders, "orders")


def test_rows_written_by_a_clock_that_was_refused_arrive(orders):
    """Once the clock is right again, nothing shows any more that it was not."""
    orders.run_one("orders")
    simulate_clock_set_back(orders, 3600)
    add_order(orders.source, "by the old clock")
    orders.on_source("update orders set updated_at = updated_at - interval '1 hour' where note = 'by the old clock'")
    error = failure_of(orders, "orders", fence_margin_seconds=5.0)
    simulate_clock_set_back(orders, -3600)
    add_order(orders.source, "by the new clock")

    orders.run_one("orders")

    assert "s behind where it was at an earlier run" in error
    assert_equal(orders, "orders")


def test_source_clock_set_back_within_the_margin_is_covered(orders):
    orders.run_one("orders", fence_margin_seconds=5.0)
    simulate_clock_set_back(orders, 4)
    add_order(orders.source, "by the new clock")

    orders.run_one("orders", fence_margin_seconds=5.0)

    assert_equal(orders, "orders")


@pytest.mark.parametrize("kind", [WatermarkKind.TIMESTAMP, WatermarkKind.DATE])
@pytest.mark.parametrize("zone", ["Europe/Rome", "America/St_Johns", "Australia/Lord_Howe", "UTC"])
def test_local_time_point_is_never_above_a_later_row(replication, kind, zone):
    """Minute by minute over a year's end of summer time, when local times happen twice."""
    night = {
        "Europe/Rome": dt.datetime(2026, 10, 25, 1, tzinfo=dt.UTC),
        "America/St_Johns": dt.datetime(2026, 11, 1, 4, 30, tzinfo=dt.UTC),
        "Australia/Lord_Howe": dt.datetime(2026, 4, 4, 15, tzinfo=dt.UTC),
        "UTC": dt.datetime(2026, 10, 25, 1, tzinfo=dt.UTC),
    }[zone]
    minutes = [night + dt.timedelta(minutes=minute) for minute in range(-150, 150)]
    local_type = "date" if kind is WatermarkKind.DATE else "timestamp"
    points, rows = [], []
    for instant in minutes:
        parameters = {
            "instant": instant,
            "repeated": fence.set_back(instant, REPEATED_HOUR_SECONDS),
            "zone": zone,
        }
        with replication.source.cursor() as cursor:
            cursor.execute(
                f"select ({POINT_EXPRESSIONS[kind]})::{local_type}, "
                f"(%(instant)s::timestamptz at time zone %(zone)s)::{local_type}",
                parameters,
            )
            point, row = cursor.fetchone()
        points.append(point)
        rows.append(row)

    assert len(points) == 300
    assert (sorted(rows) != rows) is (kind is WatermarkKind.TIMESTAMP and zone != "UTC")
    for place, point in enumerate(points):
        assert point <= min(rows[place:])


# --- What must not hold a watermark ---


def assert_settles_at_once(replication, is_still_there):
    """Run beside something that goes on; the point of that very run has to settle."""
    add_order(replication.source, "fresh")
    before = watermarks_of(replication)[0]
    assert is_still_there(), "what is to go on beside the run has ended"
    replication.run_one("orders")
    watermark, _, points = watermarks_of(replication)
    assert is_still_there(), "what is to go on beside the run has ended"
    assert watermark > before
    assert points == []
    assert_equal(replication, "orders")


def test_an_autovacuum_worker_does_not_hold_the_watermark(reader, wait_until):
    in_progress = (
        "select count(*) from pg_stat_progress_vacuum as p join pg_stat_activity as a using (pid)"
        " join pg_locks as l on l.pid = a.pid and l.locktype = 'virtualxid'"
        " where a.backend_type = 'autovacuum worker' and a.datname = current_database()"
    )

    def is_vacuuming():
        return reader.on_source(in_progress) == [(1,)]

    reader.run_one("orders")
    reader.on_source("alter system set autovacuum_naptime = '1s'")
    reader.on_source("select pg_reload_conf()")
    try:
        # With one unit of work for each pause of 100 ms, the table's few pages last for seconds.
        reader.on_source(
            "alter table orders set (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
        )
        reader.on_source("update orders set note = note || '.', updated_at = now(); select pg_stat_force_next_flush()")
        wait_until(is_vacuuming)

        assert_settles_at_once(reader, is_vacuuming)
    finally:
        reader.on_source("alter system reset autovacuum_naptime")
        reader.on_source("select pg_reload_conf()")


def test_logical_replication_does_not_hold_the_watermark(reader, source_server, wait_until):
    reader.run_one("orders")
    reader.on_source("create publication everything for all tables")
    reader.on_source("select pg_create_logical_replication_slot('stream', 'pgoutput')")

    def is_streaming():
        streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
        return reader.on_source(f"{streaming} and application_name = 'pg_recvlogical'") == [(1,)]

    try:
        with open_program(
            source_server, "pg_recvlogical", "-d", reader.source_url, "--slot", "stream", "--start", "-f", "-",
            "-o", "proto_version=1", "-o", "publication_names=everything",
        ):  # fmt: skip
            wait_until(is_streaming)
            add_order(reader.source, "streamed")

            assert_settles_at_once(reader, is_streaming)
    finally:
        wait_until(lambda: reader.on_source("select active from pg_replication_slots") == [(False,)])
        reader.on_source("select pg_drop_replication_slot('stream')")


def test_a_physical_walsender_does_not_hold_the_watermark(reader, source_server, wait_until):
    reader.run_one("orders")

    def is_streaming():
        streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
        return reader.on_source(f"{streaming} and application_name = 'pg_receivewal'") == [(1,)]

    folder = source_server.folder.parent / f"wal_{os.getpid()}"
    make_private_folder(folder)
    with open_program(source_server, "pg_receivewal", "-D", str(folder), "--no-loop", "-d", source_server.url()):
        wait_until(is_streaming)

        assert_settles_at_once(reader, is_streaming)


# --- What holds a watermark, and who it is ---


def status_of(replication, table_name="orders"):
    finished = replication.command("status", "--json")
    assert finished.returncode == 0, finished.stderr
    return next(table for table in json.loads(finished.stdout) if table["table_name"] == table_name)


def test_pg_dump_holds_the_watermark_while_fresh_rows_arrive(
    reader, may_see_all, source_server, wait_until, insert_orders
):
    insert_orders(reader.source, 2000)
    reader.run_one("orders")
    before = watermarks_of(reader)[0]

    def find_dump():
        return reader.on_source(
            "select a.pid from pg_stat_activity as a join pg_locks as l using (pid)"
            " where a.application_name = 'pg_dump' and l.relation = 'orders'::regclass"
        )

    # Nobody reads its output, so it stops once the pipe is full, amid the rows of orders.
    with open_program(source_server, "pg_dump", "-d", reader.source_url) as dump:
        wait_until(lambda: len(find_dump()) == 1)
        ((pid,),) = find_dump()
        add_order(reader.source, "fresh")
        reader.run_one("orders")
        has_fresh = has_order(reader, "fresh")
        reader.run_one("orders")
        held = watermarks_of(reader)[0]
        reader.source_url, usual = str(reader.settings.source_url), reader.source_url
        (holder,) = status_of(reader)["holders"]
        line = reader.command("status").stdout
        reader.source_url = usual
        assert find_dump() == [(pid,)]
        dump.stdout.read()
        assert dump.wait(20) == 0
    reader.run_one("orders")

    assert has_fresh, "expected the fresh row in raw, found it missing"
    assert held == before
    assert pick(holder, "pid", "application", "user") == (pid, "pg_dump", "postgres")
    assert (holder["age_seconds"] is not None) is may_see_all
    assert f"pid {pid} pg_dump, user postgres" in line
    assert watermarks_of(reader)[0] > before
    assert_equal(reader, "orders")


def test_status_shows_watermark_lag_holders_and_rejected_rows(orders, open_session):
    orders.run_one("orders")
    watermark = watermarks_of(orders)[0]
    orders.on_target("alter table raw.orders add check (note <> 'bad')")
    add_order(orders.source, "bad")
    writer = open_session(orders, application_name="billing")
    add_order(writer, "open")
    pid = writer.info.backend_pid
    preparer = open_session(orders, autocommit=True)
    execute_all(preparer, ["begin", INSERT.format("prepared"), "prepare transaction 'invoice 7'"])
    orders.run_one("orders")

    status = status_of(orders)
    line = orders.command("status").stdout
    writer.rollback()
    orders.on_source("rollback prepared 'invoice 7'")
    orders.run_one("orders")
    after = status_of(orders)

    session, prepared = status["holders"]
    assert status["watermark"] == watermark
    assert pick(session, "pid", "application", "user") == (pid, "billing", "postgres")
    assert pick(prepared, "pid", "application", "user") == (None, "invoice 7", "postgres")
    assert 0 <= prepared["age_seconds"] <= session["age_seconds"] < 60
    assert 0 < status["lag_seconds"] < 60
    assert status["rejected_rows"] == 1
    assert f"updated_at >= {watermark}" in line
    assert re.search(
        rf"pid {pid} billing, user postgres \(\d+ s\); "
        r"prepared transaction invoice 7, user postgres \(\d+ s\)",
        line,
    )
    assert pick(after, "holders", "points_waiting") == ([], 0)
    assert after["watermark"] > watermark


# --- A standby as source ---


@pytest.fixture
def replay(orders, standby_server, wait_until):
    """A function that waits until the standby has replayed all that its primary has written."""

    def has_replayed(position):
        with closing(psycopg2.connect(standby_server.url())) as session, session.cursor() as cursor:
            cursor.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,))
            return cursor.fetchone()[0]

    def wait_for_replay():
        ((position,),) = orders.on_source("select pg_current_wal_lsn()")
        wait_until(lambda: has_replayed(position))

    return wait_for_replay


@pytest.fixture
def standby(orders, standby_server, target_url, replicate_between, replay):
    """The replication from the standby; `orders` writes on its primary. One table of each kind of watermark."""
    make_events(orders, "generated always as identity")
    orders.on_source("insert into events (note) select '' from generate_series(1, 5)")
    orders.on_source("create table tags (tag_id int primary key, label text); insert into tags values (1, 'one')")
    replay()
    return replicate_between(standby_server.url(orders.source.info.dbname), target_url)


EVENTS_BY_NUMBER = {"watermark": "event_id"}
LOOKBACKS = {"orders": LOOKBACK, "events": {**EVENTS_BY_NUMBER, "lookback_rows": 10}}


def test_standby_source_is_rejected_without_a_lookback(standby):
    standby.configure({"tables": {"events": EVENTS_BY_NUMBER}})

    events, by_time, tags = standby.run().tables
    tables = standby.on_target("select tablename from pg_tables where schemaname = 'raw'")
    watermarks = standby.on_target("select table_name from etl.watermarks where watermark is not null")
    standby.configure({"tables": {"orders": LOOKBACK, "events": EVENTS_BY_NUMBER}})
    statuses = [table.status for table in standby.run().tables]

    found = {"events": events.status, "by time": by_time.status, "tags": tags.status}
    assert found == {"events": "failed", "by time": "failed", "tags": "succeeded"}
    for error, name in ((events.error, "lookback_rows"), (by_time.error, "lookback_seconds")):
        assert "the source is a standby" in error
        assert f"declare in tables.yml with {name} how late rows can arrive" in error
        assert "point SOURCE_DATABASE_URL at the primary" in error
    assert (tables, watermarks) == ([("tags",)], [])
    assert statuses == ["failed", "succeeded", "succeeded"]
    assert_equal(standby, "orders", "tags")


def test_run_reports_that_its_source_is_a_standby(standby, orders):
    standby.configure({"tables": LOOKBACKS})

    standby.run()
    orders.run("tags")

    (notice,) = [notice for notice in notices_of(standby) if "standby" in notice]
    assert notice == "the source is a standby: rows that arrive later than the declared lookback are missed"
    assert not [notice for notice in notices_of(orders) if "standby" in notice]


def test_primary_commits_arrive_through_the_standby(standby, orders, replay):
    standby.configure({"tables": LOOKBACKS})
    standby.run()
    add_order(orders.source, "another")
    orders.on_source("update orders set note = 'changed', updated_at = now() where order_id = 7")
    add_event(orders.source)
    orders.on_source("insert into tags values (2, 'two')")
    replay()

    for table_name in ("orders", "events", "tags"):
        standby.run_one(table_name)

    assert has_order(standby, "another")
    assert has_order(standby, "changed")
    assert_equal(standby, "orders", "events", "tags")
    assert_equal(orders, "orders", "events", "tags")


def test_late_primary_commit_arrives_within_the_lookback(standby, orders, replay, open_session):
    standby.configure({"tables": LOOKBACKS})
    writer = open_session(orders)
    add_order(writer, "late")
    number = add_event(writer)
    with writer.cursor() as cursor:
        cursor.execute("select updated_at from orders where note = 'late'")
        (stamped,) = cursor.fetchone()
    add_order(orders.source, "younger")
    younger = add_event(orders.source)
    replay()
    standby.run()
    passed_by = dt.datetime.fromisoformat(watermarks_of(standby, "orders")[0])
    passed_by_number = watermarks_of(standby, "events")[0]
    during = has_order(standby, "late")

    writer.commit()
    replay()
    standby.run_one("orders")
    standby.run_one("events")

    assert not during, "expected the late row to be missing before it is replayed, found it in raw"
    assert passed_by > stamped
    assert passed_by_number == str(younger) > str(number)
    assert has_order(standby, "late")
    assert_equal(standby, "orders", "events")


def test_standby_replaying_after_its_lookback_loses_nothing(standby, orders, replay, wait_until):
    standby.configure({"tables": {"orders": {"lookback_seconds": 1}}})
    standby.run_one("orders")
    standby.on_source("select pg_wal_replay_pause()")
    try:
        wait_until(lambda: standby.on_source("select pg_get_wal_replay_pause_state()") == [("paused",)])
        add_order(orders.source, "delayed")
        is_older = "select now() - updated_at > interval '1.5 seconds' from orders where note = 'delayed'"
        wait_until(lambda: orders.on_source(is_older) == [(True,)])
        standby.run_one("orders")
        during = has_order(standby, "delayed")
    finally:
        standby.on_source("select pg_wal_replay_resume()")
    replay()
    standby.run_one("orders")

    assert not during, "expected the late row to be missing before it is replayed, found it in raw"
    assert has_order(standby, "delayed")
    assert_equal(standby, "orders")


def test_standby_without_replay_since_its_start_is_usable(
    standby, orders, standby_server, replay, replicate_between, wait_until
):
    standby.configure({"tables": LOOKBACKS})
    standby.run()
    add_event(orders.source)

    def restart():
        """Start from a restartpoint behind the last commit; a commit of autovacuum may come after it."""
        execute_all(orders.source, ["checkpoint"])
        replay()
        with closing(psycopg2.connect(standby_server.url())) as session:
            session.autocommit = True
            execute_all(session, ["checkpoint"])
        stop_fast(standby_server, wait_until)
        standby_server.start()
        return replicate_between(standby.source_url, standby.target_url)

    wait_until(lambda: restart().on_source("select pg_last_xact_replay_timestamp()") == [(None,)])
    again = replicate_between(standby.source_url, standby.target_url)
    again.settings = standby.settings
    for table_name in ("orders", "events", "tags"):
        again.run_one(table_name)

    assert_equal(again, "orders", "events", "tags")


# --- A restart of the source ---


@pytest.fixture
def restartable(restartable_server, target_url, replicate_between, create_orders):
    """A replication of the orders whose source can be restarted; it has run once."""
    found = replicate_between(create_database(restartable_server), target_url)
    create_orders(found, 1000)
    found.run_one("orders")
    return found


@pytest.fixture(params=[stop_fast, crash])
def restart(request, restartable_server, replicate_between, wait_until):
    """A function that restarts the source, stopped fast or immediately, and returns a replication like the former."""

    def restart_and_connect(former):
        request.param(restartable_server, wait_until)
        restartable_server.start()
        return replicate_between(former.source_url, former.target_url)

    return restart_and_connect


def test_held_points_settle_after_a_source_restart(restartable, open_session, restart):
    before = watermarks_of(restartable)[0]
    add_order(open_session(restartable), "open")
    add_order(restartable.source, "younger")
    restartable.run_one("orders")
    held, _, points = watermarks_of(restartable)

    again = restart(restartable)
    add_order(again.source, "after")
    again.run_one("orders")

    assert held == before
    assert len(points) == 1
    watermark, _, points = watermarks_of(again)
    assert watermark > held
    assert points == []
    assert [has_order(again, note) for note in ("open", "younger", "after")] == [False, True, True]
    assert_equal(again, "orders")


def virtual_id_of(session):
    """Return the virtual id of the session's present transaction: the number of its place, and a count."""
    with session.cursor() as cursor:
        cursor.execute("select virtualxid from pg_locks where pid = pg_backend_pid() and locktype = 'virtualxid'")
        place, number = cursor.fetchone()[0].split("/")
    return int(place), int(number)


def test_reused_transaction_id_after_restart_holds_no_old_point(restartable, open_session, restart):
    # Behind others, where neither a background process nor the next start's own sessions come first.
    *_, writer = (open_session(restartable) for _ in range(10))
    while virtual_id_of(writer)[1] < 100:
        writer.rollback()
    add_order(writer, "open")
    place, number = virtual_id_of(writer)
    add_order(restartable.source, "younger")
    restartable.run_one("orders")
    (held,) = watermarks_of(restartable)[2]

    again = restart(restartable)
    reader = open_session(again)
    while virtual_id_of(reader)[0] < place:
        reader = open_session(again)
    while virtual_id_of(reader)[1] < number:
        reader.rollback()
    same = virtual_id_of(reader)
    again.run_one("orders")
    watermark, _, points = watermarks_of(again)

    assert f"{place}/{number}" in held["transactions"]
    assert same == (place, number)
    assert watermark == held["value"]
    assert len(points) == 1
    assert_equal(again, "orders")


def test_prepared_transaction_still_holds_after_a_source_restart(restartable, open_session, restart):
    held = watermarks_of(restartable)[0]
    preparer = open_session(restartable, autocommit=True)
    execute_all(preparer, ["begin", INSERT.format("prepared"), "prepare transaction 'survivor'"])
    add_order(restartable.source, "younger")
    restartable.run_one("orders")

    again = restart(restartable)
    add_order(again.source, "after")
    again.run_one("orders")
    prepared = again.on_source("select gid from pg_prepared_xacts")
    during, _, points = watermarks_of(again)
    has_fresh = has_order(again, "after")
    again.on_source("commit prepared 'survivor'")
    again.run_one("orders")

    assert prepared == [("survivor",)]
    assert during == held
    assert len(points) == 2
    assert has_fresh, "expected the fresh row in raw, found it missing"
    assert has_order(again, "prepared")
    assert watermarks_of(again)[0] > held
    assert watermarks_of(again)[2] == []
    assert_equal(again, "orders")


# --- Rows without watermark ---


def make_notes(replication, rows):
    """Make a table whose watermark may be NULL, with this many rows that have one."""
    replication.on_source("create table notes (note_id int primary key, note text, updated_at timestamptz)")
    replication.on_source("create index on notes (updated_at)")
    replication.on_source("insert into notes select n, 'note', now() from generate_series(1, %s) as n", rows)


@pytest.mark.parametrize("config", [{}, {"null_watermarks": "read"}, {"null_watermarks": "read", "batch_rows": 2}])
def test_rows_without_watermark_are_read_every_run(replication, config):
    make_notes(replication, 5)
    replication.on_source("insert into notes select n, 'unmarked' from generate_series(6, 10) as n")
    replication.configure({"tables": {"notes": config}})
    replication.run_one("notes")

    replication.on_source("update notes set note = 'changed' where note_id in (6, 10)")
    replication.on_source("update notes set updated_at = null, note = 'lost its watermark' where note_id = 1")
    replication.on_source("update notes set updated_at = now(), note = 'has one now' where note_id = 7")
    replication.on_source("insert into notes values (11, 'another')")
    first = replication.run_one("notes").counts
    arrived = replication.rows("notes")
    replication.on_source("update notes set note = 'changed again' where note_id = 8")
    second = replication.run_one("notes").counts

    assert pick(first, "inserted", "updated") == (1, 4)
    assert arrived[0] == arrived[1]
    assert pick(second, "inserted", "updated") == (0, 1)
    assert_equal(replication, "notes")


REFUSE = {"tables": {"notes": {"null_watermarks": "refuse"}}}


def test_null_watermarks_can_be_rejected_before_the_first_load(replication):
    make_notes(replication, 5)
    replication.on_source("insert into notes values (6, 'unmarked')")
    replication.configure(REFUSE)

    error = failure_of(replication, "notes")
    table = replication.on_target("select to_regclass('raw.notes')")
    replication.configure({"tables": {"notes": {"null_watermarks": "read"}}})
    replication.run_one("notes")

    assert error == (
        'column "updated_at" of public.notes is NULL in some rows, which null_watermarks: refuse forbids: fill it on '
        "the source and declare it NOT NULL, or set null_watermarks: read in tables.yml"
    )
    assert table == [(None,)]
    assert_equal(replication, "notes")


def test_table_rejecting_null_watermarks_runs_while_it_has_none(replication):
    make_notes(replication, 5)
    replication.configure(REFUSE)
    replication.run_one("notes")
    replication.on_source("insert into notes values (6, 'marked', now())")
    replication.run_one("notes")
    before = watermarks_of(replication, "notes"), replication.rows("notes")
    replication.on_source("insert into notes values (7, 'marked', now()), (8, 'unmarked', null)")

    error = failure_of(replication, "notes")
    after = watermarks_of(replication, "notes"), replication.rows("notes")
    replication.on_source("update notes set updated_at = now() where updated_at is null")
    replication.on_source("alter table notes alter updated_at set not null")
    replication.run_one("notes")

    assert "fill it on the source and declare it NOT NULL" in error
    assert after[0] == before[0]
    assert after[1][1] == before[1][1] == before[1][0]
    assert_equal(replication, "notes")


# --- A watermark column without index ---


@pytest.mark.parametrize(
    ("name", "partitioning"),
    [("notes", ""), ('Odd "Notes"', ""), ("notes", "partition by range (note_id)")],
)
def test_unindexed_watermark_is_reported_until_fixed_as_advised(replication, name, partitioning):
    table = sql.Identifier(name).as_string(replication.source)
    replication.on_source(
        f"create table {table} (note_id int primary key, updated_at timestamptz not null default now()) {partitioning}"
    )
    if partitioning:
        replication.on_source(f"create table part partition of {table} for values from (0) to (100)")
    # Neither of these finds the rows from a watermark on.
    replication.on_source(f"create index on {table} (note_id, updated_at)")
    replication.on_source(f"create index on {table} (updated_at) where note_id > 50")
    replication.on_source(f"insert into {table} values (1)")

    replication.run_one(name)
    (notice,) = notices_of(replication)
    replication.on_source(remedy_in(notice))
    replication.events.clear()
    replication.on_source(f"insert into {table} values (2)")
    replication.run_one(name)

    concurrently = "" if partitioning else "concurrently "
    assert notice == (
        f'column "updated_at" of public.{name}, its watermark, has no index: the whole table is searched each run; '
        f"run on the source: create index {concurrently}on public.{quote_name(name)} (updated_at)"
    )
    assert notices_of(replication) == []
    assert_equal(replication, name)


# --- Another cluster ---


def test_another_source_cluster_stops_its_tables_before_writing(
    orders, restartable_server, replicate_between, create_orders
):
    make_tags = "create table tags (tag_id int primary key, label text); insert into tags values (1, '{}')"
    orders.on_source(make_tags.format("usual"))
    orders.run()
    other = replicate_between(create_database(restartable_server), orders.target_url)
    create_orders(other, 1500)
    other.on_source("update orders set note = 'other', updated_at = now()")
    other.on_source(make_tags.format("other"))
    state = "select table_name, watermark, as_of, points, system_identifier, run_id from etl.watermarks order by 1"
    before = orders.on_target(state), orders.rows("orders"), orders.rows("tags")

    by_time, tags = other.run().tables
    after = orders.on_target(state), orders.rows("orders"), orders.rows("tags")
    add_order(orders.source, "back")
    orders.run_one("orders")
    orders.run_one("tags")
    has_gone_on = has_order(orders, "back")
    orders.on_target("drop table raw.orders")
    other.run_one("orders")

    identifiers = [one.on_source("select system_identifier from pg_control_system()")[0][0] for one in (orders, other)]
    for table in (by_time, tags):
        assert table.status == "failed"
        assert all(f"system identifier {identifier}" in table.error for identifier in identifiers)
        assert f"`etl reset {table.table_name}`" in table.error
    assert after == before
    assert has_gone_on, "expected that the run on the old source goes on, found that it stopped"
    assert_equal(other, "orders")
