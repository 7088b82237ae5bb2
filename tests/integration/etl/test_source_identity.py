"""Raw tables take rows only from the database and schema that they come from, until a person decides otherwise."""

import json
from contextlib import closing

import psycopg2
import pytest

import etl
from etl.commands import shared_run
from etl.model import RunOptions
from tests.integration.etl.faults import create_database

MAKE_ITEMS = """
    create table {schema}.items (
        item_id int primary key, note text not null, updated_at timestamptz not null default clock_timestamp()
    );
    create index on {schema}.items (updated_at);
    insert into {schema}.items (item_id, note, updated_at)
    select n, '{note}', '2026-01-02 03:04:05+00' from generate_series(1, {rows}) as n
"""
LEDGER = "select to_jsonb(w) from etl.watermarks as w order by table_name"
RAW = "select item_id, note, xmin::text, _etl_deleted_at from raw.items order by 1"
COMMANDS = ("run", "verify", "verify --repair", "shared run")


def make_items(replication, note="own", rows=30, schema="public"):
    replication.on_source(MAKE_ITEMS.format(schema=schema, note=note, rows=rows))


@pytest.fixture
def items(replication):
    """Thirty items that were replicated from the source."""
    make_items(replication)
    replication.run_one("items")
    return replication


@pytest.fixture
def elsewhere(items, source_server, replicate_between):
    """The replication to the same target from another database of the same cluster."""
    return replicate_between(create_database(source_server), items.target_url)


def error_of(replication, command):
    """Return the error with which a command stopped the items."""
    if command == "run":
        (result,) = replication.run("items").tables
        assert result.status == "failed"
        return result.error
    if command == "shared run":
        begun = shared_run.begin(replication.settings, shared_by="a DAG run", observe=replication.events.append)
        result = shared_run.replicate(replication.settings, begun.run_id, "items", observe=replication.events.append)
        assert shared_run.end(replication.settings, begun.run_id, observe=replication.events.append).failed_tables
        return result.tables[0].error
    (verdict,) = etl.verify(replication.settings, ("items",), is_repair=command == "verify --repair")
    assert not verdict.is_equal
    return verdict.error


def verify(replication, **options):
    (verdict,) = etl.verify(replication.settings, ("items",), **options)
    return verdict


def database_of(replication):
    ((name, oid),) = replication.on_source("select datname, oid from pg_database where datname = current_database()")
    return f'database "{name}" (oid {oid})'


def notices_of(replication):
    return [event.message for event in replication.events if event.kind == "notice"]


# ---------------------------------------------------------------------------------------------------------------------
# What stops


@pytest.mark.parametrize("command", COMMANDS)
def test_another_database_of_the_cluster_stops_the_table(items, elsewhere, command):
    make_items(elsewhere, "other")
    before = items.on_target(RAW), items.on_target(LEDGER)

    error = error_of(elsewhere, command)

    assert f"raw.items holds rows of {database_of(items)}" in error
    assert f"the source is now {database_of(elsewhere)}" in error
    assert "`etl reset items`" in error
    assert "`etl verify --adopt-source items`" in error
    assert (items.on_target(RAW), items.on_target(LEDGER)) == before
    items.on_source("update items set note = 'new', updated_at = clock_timestamp() where item_id = 7")
    assert items.run_one("items").rows_updated == 1


@pytest.mark.parametrize("names", [(), ("items",)], ids=["all tables", "by name"])
def test_table_that_another_database_lacks_is_not_called_dropped(items, elsewhere, names):
    elsewhere.on_source("create table notes (note_id int primary key)")

    results = {result.table_name: result for result in elsewhere.run(*names).tables}

    error = results["items"].error or ""
    assert f"raw.items holds rows of {database_of(items)}" in error
    assert f"the source is now {database_of(elsewhere)}" in error
    assert items.on_target("select * from etl.schema_changes where kind = 'table_missing'") == []
    assert items.run_one("items").rows_read == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_another_schema_stops_the_table(items, command):
    items.on_source("create schema other")
    make_items(items, "other", schema="other")
    before = items.on_target(RAW), items.on_target(LEDGER)
    items.configure({"schema": "other"})

    error = error_of(items, command)

    assert 'schema "public"' in error
    assert 'schema "other"' in error
    assert (items.on_target(RAW), items.on_target(LEDGER)) == before
    items.configure({})
    assert verify(items).is_equal


def rename_database(server, name, new_name):
    with closing(psycopg2.connect(server.url())) as control:
        control.autocommit = True
        with control.cursor() as cursor:
            cursor.execute(f"alter database {name} rename to {new_name}")


@pytest.fixture
def renamed(target_url, source_server, replicate_between):
    """The replication of thirty items from a database that was renamed after the run, and its former name."""
    before = replicate_between(create_database(source_server), target_url)
    make_items(before)
    before.run_one("items")
    name = before.source.info.dbname
    before.source.close()
    rename_database(source_server, name, f"{name}_renamed")
    return replicate_between(source_server.url(f"{name}_renamed"), target_url), name


def test_renamed_database_goes_on(renamed):
    replication, _ = renamed
    replication.on_source("insert into items values (31, 'new')")

    assert replication.run_one("items").rows_inserted == 1
    assert replication.on_target("select database_name from etl.watermarks") == [(replication.source.info.dbname,)]


def test_recreated_database_of_the_same_name_stops_the_table(renamed, source_server, replicate_between):
    replication, name = renamed
    other = create_database(source_server)
    rename_database(source_server, other.rpartition("/")[2].partition("?")[0], name)
    recreated = replicate_between(source_server.url(name), replication.target_url)
    make_items(recreated, "other")

    error = error_of(recreated, "run")

    assert f'raw.items holds rows of database "{name}"' in error
    assert f"the source is now {database_of(recreated)}" in error


def test_exit_codes_of_another_source(elsewhere):
    make_items(elsewhere, "other")

    codes = [
        elsewhere.command(*command).returncode
        for command in (("run",), ("verify",), ("verify", "--repair"), ("verify", "--adopt-source"))
    ]

    assert codes == [1, 3, 3, 1]


def test_table_that_never_finished_loading_is_not_continued(items, elsewhere):
    """The target rejects a row, so batches fill the table, and the second one fails."""
    items.on_target("drop table raw.items; delete from etl.watermarks; create schema if not exists raw")
    items.on_source("update items set note = 'bad' where item_id = 25")
    items.on_target(
        "create function refuse_bad() returns event_trigger language plpgsql as $$ begin "
        "if to_regclass('raw.items') is not null and not exists (select from pg_constraint where conname = 'no_bad') "
        "then alter table raw.items add constraint no_bad check (note <> 'bad'); end if; end $$;"
        "create event trigger refuse_bad on ddl_command_end when tag in ('CREATE TABLE') execute function refuse_bad()"
    )
    items.configure({"defaults": {"batch_rows": 10, "max_rejected_rows": 1}, "tables": {"items": {}}})
    items.on_source("update items set note = 'bad' where item_id = 26")
    (failed,) = items.run("items").tables
    held = items.on_target("select count(*) from raw.items")
    make_items(elsewhere, "other")

    error = error_of(elsewhere, "run")

    assert failed.status == "failed"
    assert held == [(20,)]
    assert "raw.items holds rows of" in error
    assert items.on_target("select count(*) from raw.items") == held


# ---------------------------------------------------------------------------------------------------------------------
# What goes on


def test_reset_reloads_the_table_from_another_source(items, elsewhere):
    make_items(elsewhere, "other", rows=29)

    (result,) = elsewhere.run("items", options=RunOptions(full_refresh=True)).tables

    assert result.status == "succeeded"
    (notice,) = [message for message in notices_of(elsewhere) if "the table is reloaded" in message]
    assert f"raw.items holds rows of {database_of(items)}" in notice
    assert f"the source is now {database_of(elsewhere)}" in notice
    assert verify(elsewhere).is_equal
    assert items.on_target("select item_id from raw.items where _etl_deleted_at is not null") == [(30,)]
    assert "raw.items holds rows of" in error_of(items, "run")


def test_equal_source_is_adopted_and_its_rows_arrive(items, elsewhere):
    make_items(elsewhere)

    finished = elsewhere.command("verify", "--adopt-source", "--json")
    elsewhere.on_source("insert into items values (31, 'new')")
    result = elsewhere.run_one("items")

    (verdict,) = json.loads(finished.stdout)
    assert finished.returncode == 0
    assert (verdict["is_equal"], verdict["is_adopted"], verdict["repaired"]) == (True, True, 0)
    assert result.rows_inserted == 1
    assert verify(elsewhere).is_equal
    kind, detail = items.on_target("select kind, detail from etl.schema_changes order by change_id desc")[0]
    assert kind == "source_adopted"
    assert f"the source is now {database_of(elsewhere)}" in detail


def test_source_that_differs_is_not_adopted(items, elsewhere):
    """Also where only rows at or above the watermark differ: the next run would read them unasked."""
    make_items(elsewhere)
    elsewhere.on_source("update items set note = 'other', updated_at = clock_timestamp() where item_id = 7")
    before = items.on_target(RAW), items.on_target(LEDGER)

    finished = elsewhere.command("verify", "--adopt-source")

    assert finished.returncode == 1
    assert "different: 1 changed" in finished.stdout
    assert (items.on_target(RAW), items.on_target(LEDGER)) == before
    assert "raw.items holds rows of" in error_of(elsewhere, "run")


def test_source_that_differs_is_adopted_after_a_repair(items, elsewhere):
    make_items(elsewhere, rows=29)
    elsewhere.on_source("update items set note = 'other' where item_id = 7; insert into items values (0, 'other')")

    verdict = verify(elsewhere, is_adoption=True, is_repair=True)

    assert (verdict.is_equal, verdict.is_adopted, verdict.repaired) == (True, True, 3)
    assert items.on_target("select item_id from raw.items where _etl_deleted_at is not null") == [(30,)]
    elsewhere.run_one("items")
    assert verify(elsewhere).is_equal


def test_emptied_source_is_not_adopted_by_a_repair(items, elsewhere):
    make_items(elsewhere, rows=0)
    before = items.on_target(RAW), items.on_target(LEDGER)

    verdict = verify(elsewhere, is_adoption=True, is_repair=True)

    assert "30 of 30 rows are missing from the source" in verdict.error
    assert "`etl reset --allow-deletes items`" in verdict.error
    assert (items.on_target(RAW), items.on_target(LEDGER)) == before


def test_late_commit_of_an_adopted_source_arrives(items, elsewhere):
    """Its transaction is older than the watermark, which came from the former source."""
    make_items(elsewhere)
    with closing(elsewhere.open_source()) as writer, writer.cursor() as cursor:
        cursor.execute("insert into items values (31, 'late', '2026-01-01 00:00:00+00')")

        adopted = verify(elsewhere, is_adoption=True)
        elsewhere.run_one("items")
        writer.commit()
    elsewhere.run_one("items")

    assert adopted.is_adopted
    assert items.on_target("select note from raw.items where item_id = 31") == [("late",)]


# ---------------------------------------------------------------------------------------------------------------------
# What is known


def test_first_run_on_an_older_ledger_records_the_source(items):
    items.on_target(
        "update etl.watermarks set database_name = null, database_oid = null, schema_name = null, timeline = null"
    )

    items.run_one("items")

    assert items.on_target("select database_name, schema_name, timeline from etl.watermarks") == [
        (items.source.info.dbname, "public", 1)
    ]


@pytest.mark.parametrize("may_see_all", [True, False])
@pytest.mark.parametrize("revoked", [(), ("pg_walfile_name(pg_lsn)",)])
def test_unprivileged_role_knows_the_timeline(replication, read_as_role, may_see_all, revoked):
    make_items(replication)
    for function in revoked:
        replication.on_source(f"revoke execute on function {function} from public")
    read_as_role(may_see_all)

    replication.run_one("items")

    assert replication.on_target("select timeline from etl.watermarks") == [(1,)]


def test_role_that_cannot_see_the_timeline_is_told_so(replication, read_as_role):
    make_items(replication)
    for function in ("pg_walfile_name(pg_lsn)", "pg_control_checkpoint()"):
        replication.on_source(f"revoke execute on function {function} from public")
    read_as_role(True)

    replication.run_one("items")
    (notice,) = [message for message in notices_of(replication) if "timeline" in message]
    replication.on_source(
        notice.partition("run on the source: ")[2].replace("the role of SOURCE_DATABASE_URL", "public")
    )
    replication.events.clear()
    replication.run_one("items")

    assert [message for message in notices_of(replication) if "timeline" in message] == []
    assert replication.on_target("select timeline from etl.watermarks") == [(1,)]
