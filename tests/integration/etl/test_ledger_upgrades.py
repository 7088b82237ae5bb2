"""Commands on the ledger of another release: they continue, name the command that upgrades it, or refuse it."""

import json
import subprocess
import sys
from contextlib import closing

import psycopg2
import pytest

from etl.commands import shared_run
from etl.errors import ConfigurationError, LockHeldError
from etl.ledger import locks
from etl.ledger.versions import VERSION
from tests.integration.etl.old_ledgers import SHAPES, STATED, put_ledger, sql_of, state, state_version

# ---------------------------------------------------------------------------------------------------------------------
# Runs after a migration


def make_items(replication, rows):
    replication.on_source(
        "create table items (item_id int primary key, note text not null default '', "
        "updated_at timestamptz not null default clock_timestamp()); create index on items (updated_at);"
        f"insert into items (item_id) select generate_series(1, {rows})"
    )
    replication.run_one("items")


def set_back(replication, shape, *, watermark=None):
    """Replace the ledger by one that an older release left after one run over the items, and return its watermark."""
    ((found, as_of, system),) = replication.on_target(
        "select watermark, as_of::text, system_identifier from etl.watermarks where table_name = 'items'"
    )
    point = {
        "value": found,
        "as_of": as_of,
        "transactions": ["3/17"],
        "server_started_at": "2026-01-02T03:04:05.678901+00:00",
    }
    replication.on_target("drop schema etl cascade")
    replication.on_target(sql_of(shape))
    replication.on_target(
        "insert into etl.runs (status, ended_at) values ('succeeded', clock_timestamp());"
        "insert into etl.table_runs (run_id, table_name, status) values (1, 'items', 'succeeded');"
        "insert into etl.watermarks (table_name, column_name, watermark, points, system_identifier, run_id) "
        "values ('items', 'updated_at', %s, %s, %s, 1)",
        watermark or found,
        json.dumps([point]),
        system,
    )
    return watermark or found


@pytest.mark.parametrize("shape", SHAPES)
def test_run_continues_from_an_older_watermark_without_reloading(replication, shape):
    make_items(replication, 30)
    versions = "select item_id, xmin::text from raw.items where item_id > 3 order by item_id"
    before = replication.on_target(versions)
    watermark = set_back(replication, shape)
    replication.on_source("update items set note = '!', updated_at = clock_timestamp() where item_id <= 3")

    result = replication.run_one("items")

    source, raw = replication.rows("items")
    assert (result.rows_read, result.rows_inserted, result.rows_updated) == (3, 0, 3)
    assert replication.on_target("select watermark_before from etl.table_runs where run_id = 2") == [(watermark,)]
    assert replication.on_target(versions) == before
    assert source == raw


def test_rereading_rows_of_an_older_release_changes_nothing(replication):
    make_items(replication, 30)
    set_back(replication, "1", watermark="2000-01-01 00:00:00+00")
    before = replication.on_target("select item_id, xmin::text from raw.items order by item_id")

    result = replication.run_one("items")

    assert (result.rows_read, result.rows_unchanged) == (30, 30)
    assert replication.on_target("select item_id, xmin::text from raw.items order by item_id") == before


@pytest.fixture
def shared(replication):
    """A run over two tables that processes share, which an older release began."""
    replication.on_source(
        "create table parents (parent_id int primary key); create table items (item_id int primary key, parent_id int "
        "references parents); insert into parents values (1); insert into items values (1, 1)"
    )
    begun = shared_run.begin(replication.settings, shared_by="a DAG run", observe=replication.events.append)
    state_version(replication, VERSION - 1)
    return replication, begun.run_id


def test_shared_run_continues_after_an_upgrade(shared):
    replication, run_id = shared
    settings = replication.settings

    results = [
        shared_run.replicate(settings, run_id, name, observe=replication.events.append) for name in ("items", "parents")
    ]
    state_version(replication, VERSION - 1)
    ended = shared_run.end(settings, run_id, observe=replication.events.append)

    assert [result.run_id for result in results] == [run_id, run_id]
    assert ended.failed_tables == ()
    assert replication.on_target("select status from etl.runs where run_id = %s", run_id) == [("succeeded",)]
    assert replication.on_target(STATED)[0][0].startswith(f"Ledger version {VERSION}.")


def test_an_upgrade_waits_for_the_tables_of_a_shared_run(shared):
    """A process of the older release is at work on one of them."""
    replication, run_id = shared
    before = state(replication)
    with closing(psycopg2.connect(replication.target_url)) as other, other.cursor() as cursor:
        cursor.execute("select pg_advisory_lock_shared(%s)", (locks.RUN_LOCK_KEY,))

        with pytest.raises(LockHeldError, match="another run is in progress"):
            shared_run.replicate(
                replication.settings_with(lock_wait_seconds=0.05), run_id, "items", observe=replication.events.append
            )

        assert state(replication) == before


def test_table_without_its_run_keeps_an_older_shared_run_open(shared):
    replication, run_id = shared
    replication.on_target("insert into etl.runs (status, ended_at) values ('died', now())")

    with pytest.raises(LockHeldError, match="run 1 of a DAG run, begun at"):
        shared_run.replicate(replication.settings, run_id + 1, "items", observe=replication.events.append)

    assert replication.on_target("select status from etl.runs where run_id = %s", run_id) == [("running",)]


# ---------------------------------------------------------------------------------------------------------------------
# Who refuses what

COMMANDS = (("run",), ("run", "items"), ("reset", "items"), ("status",), ("verify",), ("verify", "--repair"))


@pytest.fixture
def newer(replication):
    """The items replicated by a newer release, whose ledger has other columns."""
    make_items(replication, 3)
    replication.on_source("update items set note = '!', updated_at = clock_timestamp()")
    replication.on_target(
        "alter table etl.runs rename column status to state; alter table etl.watermarks rename to marks"
    )
    state_version(replication, VERSION + 1)
    return replication


def refusal(replication):
    address = replication.settings.target_url.address
    return (
        f"the ledger of {address} has version {VERSION + 1}, and this release knows up to {VERSION}: "
        f"upgrade Tidemark to one that knows version {VERSION + 1}"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_newer_ledger_is_rejected_and_nothing_is_written(newer, command):
    before = state(newer), newer.on_target("select t::text, xmin::text from raw.items as t")

    finished = newer.command(*command)

    assert (finished.returncode, finished.stderr) == (2, f"etl: {refusal(newer)}\n")
    assert (state(newer), newer.on_target("select t::text, xmin::text from raw.items as t")) == before


def test_processes_of_a_shared_run_reject_a_newer_ledger(newer):
    before = state(newer)
    calls = (
        lambda: shared_run.begin(newer.settings, shared_by="a DAG run", observe=newer.events.append),
        lambda: shared_run.replicate(newer.settings, 1, "items", observe=newer.events.append),
        lambda: shared_run.end(newer.settings, 1, observe=newer.events.append),
    )

    for call in calls:
        with pytest.raises(ConfigurationError) as caught:
            call()

        assert str(caught.value) == refusal(newer)
    assert state(newer) == before


@pytest.mark.parametrize("command", [("status",), ("verify",)], ids=" ".join)
@pytest.mark.parametrize("shape", ["1", "4"])
def test_reading_an_older_ledger_shows_how_to_upgrade_it(replication, shape, command):
    put_ledger(replication, shape)
    before = state(replication)

    finished = replication.command(*command)

    assert finished.returncode == 3
    assert finished.stderr == (
        f"etl: the ledger of {replication.settings.target_url.address} has version {shape}, and this release reads "
        f"version {VERSION}: run `etl run` first, which upgrades it\n"
    )
    assert state(replication) == before


def test_repair_upgrades_an_older_ledger(replication):
    make_items(replication, 3)
    set_back(replication, "1")
    replication.on_target("delete from raw.items where item_id = 2")

    finished = replication.command("verify", "--repair")

    assert finished.returncode == 0, finished.stderr
    assert replication.on_target(STATED)[0][0].startswith(f"Ledger version {VERSION}.")
    assert replication.on_target("select count(*) from raw.items") == [(3,)]


@pytest.mark.parametrize("comment", ["null", "'Runs.'"])
def test_ledger_without_a_version_is_rejected(replication, comment):
    """As after a dump without comments: this release might take a newer ledger for an older one."""
    replication.on_source("create table items (item_id int primary key)")
    put_ledger(replication, "4")
    replication.on_target(f"comment on table etl.runs is {comment}")
    before = state(replication)

    finished = [replication.command(*command) for command in (("run",), ("status",))]

    assert [process.returncode for process in finished] == [2, 2]
    assert "comment on table etl.runs is 'Ledger version N.'" in finished[0].stderr
    assert state(replication) == before
    replication.on_target("delete from etl.loads")  # of another source
    replication.on_target("comment on table etl.runs is 'Ledger version 4.'")
    assert replication.command("run").returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# What it costs

IMPORTED = """
import sys
from etl.cli import main
code = main(sys.argv[1:])
print(code, sorted({"sqlalchemy", "alembic"} & set(sys.modules)))
"""


def imported(replication, *arguments):
    finished = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments],
        env=replication.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return finished.stdout.splitlines()[-1]


def test_migrations_are_imported_only_when_needed(replication):
    replication.on_source("create table items (item_id int primary key); insert into items values (1)")

    first = imported(replication, "run")
    later = [imported(replication, *command) for command in (("run",), ("reset", "items"), ("status",), ("verify",))]
    state_version(replication, VERSION - 1)
    migrating, after = imported(replication, "run"), imported(replication, "run")

    assert first == "0 []"
    assert later == ["0 []"] * 4
    assert (migrating, after) == ("0 ['alembic', 'sqlalchemy']", "0 []")
