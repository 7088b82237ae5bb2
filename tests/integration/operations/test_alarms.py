"""The queries of docs/operations.md show the state; those of alarms return nothing until something is wrong."""

import datetime as dt
import re
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import psycopg2
import pytest

from etl.ledger import locks
from tests.integration.dbt.built_shop import CHECKOUT, locked
from tests.integration.operations.conftest import PAGE, blocks
from tests.results import pick

HEADING = re.compile(r"^### (.+)$", re.MULTILINE)
ALARMS_PART = PAGE[PAGE.index("\n## Alarms\n") : PAGE.index("\n## Backup\n")]
ALARMS = {heading: blocks(heading)[0] for heading in HEADING.findall(ALARMS_PART)}
ON_SOURCE = "A transaction is open on the source"
WAIT_SECONDS = 30


def ask(heading, source, target):
    """Return the rows of an alarm, asked as the page says, each as a dict."""
    side, role = (source, "replicator") if heading == ON_SOURCE else (target, "monitor")
    columns, rows = side.query(ALARMS[heading], role)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def ringing(source, target):
    """Return the alarms that answer rows."""
    return {heading: rows for heading in ALARMS if (rows := ask(heading, source, target))}


@pytest.fixture
def quiet(shop, source, target):
    """A shop of which no alarm tells anything."""
    shop.succeed("extract")
    assert ringing(source, target) == {}
    return shop


def set_back(target, table, *columns, hours, where="true"):
    """Bring about that hours have passed."""
    changes = ", ".join(f"{column} = {column} - interval '{hours} hours'" for column in columns)
    target.force(f"update {table} set {changes} where {where}")


def wait_until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_every_alarm_of_the_table_has_its_query():
    listed = re.findall(r"^\| ((?:a|no|rows|the) [^|]+) \| [^|]+ \|", ALARMS_PART, re.MULTILINE)

    assert len(listed) == 8
    assert {name[0].lower() + name[1:] for name in ALARMS} == set(listed)


def test_an_alarm_waits_as_long_as_the_table_says():
    waits = re.findall(r"^\| (\w[^|]+) \| (\d+ \w+) \|", ALARMS_PART, re.MULTILINE)

    assert len(waits) == 6
    for name, after in waits:
        assert f"interval '{after}'" in ALARMS[name[0].upper() + name[1:]]


def test_run_lock_key_equals_that_of_etl():
    assert f"l.objid = {locks.RUN_LOCK_KEY} " in ALARMS["A run goes on and on"]


def test_missing_runs_raise_an_alarm(quiet, source, target):
    quiet.succeed("dbt-run")
    set_back(target, "etl.runs", "started_at", "ended_at", hours=4)
    told = ringing(source, target)
    quiet.succeed("extract")

    assert list(told) == ["No run has ended"]
    assert dt.datetime.now(dt.UTC) - told["No run has ended"][0]["last_ended_at"] > dt.timedelta(hours=4)
    assert ringing(source, target) == {}


def test_failed_table_raises_an_alarm_while_others_continue(quiet, source, target):
    source.query("alter table campaigns rename column campaign_id to id")
    try:
        assert quiet.make("extract").returncode == 1
        at_once = ringing(source, target)
        set_back(target, "etl.table_runs", "started_at", "ended_at", hours=4, where="table_name = 'campaigns'")
        told = ringing(source, target)
    finally:
        source.query("alter table campaigns rename column id to campaign_id")
    quiet.succeed("extract")

    assert at_once == {}
    assert list(told) == ["A table has not succeeded"]
    ((row),) = told["A table has not succeeded"]
    assert row["table_name"] == "campaigns"
    assert row["last_succeeded_at"] is not None
    assert "the key changed from (campaign_id) to (id)" in row["last_error"]
    assert ringing(source, target) == {}


def test_dropped_source_table_raises_no_alarm(quiet, source, target):
    source.query("create table leaflets (leaflet_id int primary key, updated_at timestamptz default now())")
    quiet.succeed("extract")
    source.query("drop table leaflets")
    quiet.succeed("extract")
    set_back(target, "etl.table_runs", "started_at", "ended_at", hours=4, where="table_name = 'leaflets'")

    assert ringing(source, target) == {}


def test_held_watermark_raises_an_alarm_until_it_moves(quiet, source, target):
    set_back(target, "etl.watermarks", "as_of", hours=3, where="table_name = 'orders'")
    with closing(psycopg2.connect(source.url("owner"))) as holder, holder.cursor() as cursor:
        cursor.execute("select count(*) from orders")
        quiet.succeed("extract", "orders")
        told = ringing(source, target)
        on_source = source.query(ALARMS[ON_SOURCE].replace("30 minutes", "0 seconds"), "replicator")[1]
        as_written = ask(ON_SOURCE, source, target)
        pid = str(holder.info.backend_pid)
    quiet.succeed("extract", "orders")

    (row,) = told.pop("A watermark is held back")
    assert pick(row, "table_name", "points_waiting") == ("orders", 1)
    assert told == {}
    assert dt.timedelta(hours=3) < row["was_behind"] < dt.timedelta(hours=4)
    assert [row[:2] for row in on_source] == [(pid, "owner")]
    assert as_written == []
    assert ringing(source, target) == {}


def test_prepared_source_transaction_raises_an_alarm(source):
    query = ALARMS[ON_SOURCE].replace("30 minutes", "0 seconds")
    with closing(psycopg2.connect(source.url("owner"))) as session:
        session.tpc_begin("forgotten")
        with session.cursor() as cursor:
            cursor.execute("select 1")
        session.tpc_prepare()
        found = source.query(query, "replicator")[1]
        session.tpc_rollback()

    assert [row[:3] for row in found] == [("prepared", "owner", "forgotten")]
    assert source.query(query, "replicator")[1] == []


def test_rejected_row_raises_an_alarm_at_once(quiet, source, target):
    target.query("alter table raw.products add constraint has_name check (name <> 'refused')", "loader")
    source.query("insert into products (sku, name, category, price, cost) values ('r', 'refused', 'none', 2, 1)")
    quiet.succeed("extract", "products")
    told = ringing(source, target)
    target.query("alter table raw.products drop constraint has_name", "loader")
    quiet.succeed("extract", "products")

    (row,) = told.pop("Rows are rejected")
    assert pick(row, "table_name", "sqlstate", "row_count") == ("products", "23514", 1)
    assert told == {}
    assert ringing(source, target) == {}


def test_change_below_a_watermark_raises_an_alarm_for_a_day(quiet, source, target):
    source.query("alter table products disable trigger user")
    source.query("update products set name = name || '!' where product_id = 1")
    source.query("alter table products enable trigger user")
    quiet.succeed("extract", "products", "--reconcile")
    told = ringing(source, target)
    set_back(target, "etl.net_scans", "found_at", hours=25, where="table_name = 'products'")

    (row,) = told.pop("Rows change below a watermark")
    assert pick(row, "table_name", "rows_found") == ("products", 1)
    assert told == {}
    assert ringing(source, target) == {}


def test_never_loaded_table_alarms_until_excluded_for_two_days(quiet, source, target):
    source.query("create table keyless (a int)")
    assert quiet.make("extract", "keyless").returncode == 1
    source.query("drop table keyless")
    set_back(target, "etl.table_runs", "started_at", "ended_at", hours=4, where="table_name = 'keyless'")
    told = ringing(source, target)
    set_back(target, "etl.table_runs", "started_at", "ended_at", hours=48, where="table_name = 'keyless'")

    ((row,),) = told.values()
    assert pick(row, "table_name", "last_succeeded_at") == ("keyless", None)
    assert "has no primary key" in row["last_error"]
    assert ringing(source, target) == {}


@contextmanager
def run_beside(shop, *arguments, **settings):
    """Yield a process of `etl`, which is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "etl", *arguments],
        cwd=CHECKOUT,
        env={"SOURCE_DATABASE_URL": shop.source_url, "TARGET_DATABASE_URL": shop.target_url, **settings},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_overlong_run_raises_an_alarm_and_shows_if_it_is_alive(quiet, source, target):
    heading = "A run goes on and on"
    with (
        locked(source.url("owner"), "orders"),
        run_beside(quiet, "run", "orders", ETL_LOCK_TIMEOUT_SECONDS="60") as process,
    ):
        wait_until(lambda: target.force("select run_id from etl.runs where status = 'running'"))
        at_once = ringing(source, target)
        set_back(target, "etl.runs", "started_at", hours=3, where="status = 'running'")
        (alive,) = ask(heading, source, target)
        process.kill()
        wait_until(lambda: not ask(heading, source, target)[0]["is_locked"])
        told = ringing(source, target)
    quiet.succeed("extract")

    assert at_once == {}
    assert pick(alive, "is_locked", "shared_by") == (True, None)
    assert list(told) == [heading]
    assert target.force("select status from etl.runs where run_id = " + str(alive["run_id"])) == [("died",)]
    assert ringing(source, target) == {}


def test_marts_not_built_after_a_run_raise_an_alarm(quiet, source, target):
    quiet.succeed("extract")
    at_once = ringing(source, target)
    set_back(target, "etl.runs", "started_at", "ended_at", hours=4)
    quiet.succeed("extract")
    told = ringing(source, target)
    quiet.succeed("dbt-run")

    assert at_once == {}
    assert list(told) == ["The marts lag behind raw"]
    assert {"fct_orders", "snap_products"} <= {row["model_name"] for row in told["The marts lag behind raw"]}
    assert ringing(source, target) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Queries that show the state


def test_last_runs_are_shown(quiet, source, target):
    source.query("update products set name = name || '!'")
    quiet.succeed("extract")
    columns, rows = target.query(blocks("What did the last runs do?")[0], "monitor")
    newest = dict(zip(columns, rows[0], strict=True))
    (products,) = source.query("select count(*) from products")[1][0]

    assert pick(newest, "status", "tables", "failed", "retries") == ("succeeded", 8, 0, 0)
    assert newest["rows_changed"] == products
    assert newest["run_id"] == max(row[0] for row in rows)
    assert newest["duration"] > dt.timedelta()


def test_running_load_is_shown(quiet, target):
    (query,) = blocks("How far has a first load come?")
    slowly = {"ETL_LOAD_RANGE_BLOCKS": "1", "ETL_MAX_SOURCE_MB_PER_SECOND": "0.02"}
    before = target.query(query, "monitor")[1]
    with run_beside(quiet, "reset", "orders", **slowly):
        wait_until(lambda: target.query(query, "monitor")[1])
        (row,) = target.query(query, "monitor")[1]
    quiet.succeed("extract")

    assert (before, row[0]) == ([], "orders")
    assert re.fullmatch(r"\d+ (bytes|kB)", row[1])
    assert target.query(query, "monitor")[1] == []


def test_source_changes_are_shown(quiet, source, target):
    source.query("alter table payments add column note text")
    quiet.succeed("extract", "payments")
    columns, rows = target.query(blocks("What has changed in the source's tables?")[0], "monitor")
    newest = dict(zip(columns, rows[0], strict=True))

    assert pick(newest, "table_name", "kind", "column_name") == ("payments", "column_added", "note")


@pytest.mark.usefixtures("shop")
def test_schema_sizes_are_shown(target):
    _, rows = target.query(blocks("How large is the warehouse?")[0], "monitor")
    sizes = {schema: (tables, size) for schema, tables, size, _ in rows}
    (raw,) = target.force(
        "select pg_size_pretty(sum(pg_total_relation_size(oid))) from pg_class "
        "where relnamespace = 'raw'::regnamespace and relkind = 'r'"
    )

    assert sizes.keys() == {"raw", "etl", "snapshots", "intermediate", "marts"}
    assert sizes["raw"][0] >= 8
    assert sizes["raw"][1] == raw[0]
