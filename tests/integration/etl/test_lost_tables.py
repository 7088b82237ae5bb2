"""Tables that a run can no longer read: none is dropped in silence, and only what is missing is called missing."""

import json
import re
from dataclasses import replace

import pytest

from etl.commands import shared_run
from etl.commands.status import read_status
from etl.commands.verify import verify
from etl.database_url import DatabaseUrl
from etl.errors import ConfigurationError, SourceChangedError, TableError
from etl.source.session import Source
from etl.target.new_table import RawLoad
from tests.integration.operations.conftest import blocks
from tests.results import pick, statuses

NO_GRANT = "public.items cannot be read: run on the source: grant select on public.items to the role of"
LOSSES = {
    "grant": ("revoke select on items from {role}", NO_GRANT),
    "grants on some columns": (
        "revoke select on items from {role}; grant select (item_id, updated_at) on items to {role}",
        NO_GRANT,
    ),
    "usage of the schema": (
        "revoke usage on schema public from {role}, public",
        "public.items cannot be read: run on the source: grant usage on schema public to the role of",
    ),
    "key": ("alter table items drop constraint items_pkey", "public.items has no primary key"),
    "type of the watermark": (
        "alter table items alter updated_at drop default, alter updated_at type text",
        'column "updated_at" of public.items has type text: a watermark column must be a timestamp',
    ),
    "rows behind a policy": (
        "alter table items enable row level security; create policy own on items using (false)",
        "alter role ... bypassrls on the source",
    ),
    "a view": (
        "alter table items rename to old; create view items as table old; grant select on items to {role}",
        "public.items is a view: only tables are replicated",
    ),
    "a materialized view": (
        "alter table items rename to old; create materialized view items as table old; grant select on items to {role}",
        "public.items is a materialized view: only tables are replicated",
    ),
    "a foreign table": (
        "drop table items; create foreign data wrapper nowhere; create server nowhere foreign data wrapper nowhere; "
        "create foreign table items (item_id int) server nowhere; grant select on items to {role}",
        "public.items is a foreign table: only tables are replicated",
    ),
    "a partition": (
        "create table whole (like items including all) partition by range (item_id); "
        "alter table whole attach partition items for values from (0) to (100); grant select on whole to {role}",
        "public.items is now a partition of public.whole, whose rows include its own: replicate that one",
    ),
    "another schema": (
        "create schema archive; alter table items set schema archive",
        "the table that raw.items was loaded from is archive.items: correct `schema:` in tables.yml",
    ),
}


@pytest.fixture
def role(replication):
    """A role that reads schema public, and as which runs read."""
    (database,) = replication.on_source("select current_database()")[0]
    name = f"lost_{database}"
    replication.on_source(f"create role {name} login password 'r'; grant usage on schema public to {name}")
    url = re.sub(r"//[^@]*@", f"//{name}:r@", replication.source_url)
    replication.settings = replace(replication.settings, source_url=DatabaseUrl(url))
    yield name
    replication.on_source(f"drop owned by {name}; drop role {name}")


@pytest.fixture
def items(replication, role):
    """Two tables, replicated as this role."""
    for name, key in (("items", "item_id"), ("notes", "note_id")):
        replication.on_source(
            f"create table {name} ({key} int primary key, updated_at timestamptz not null default now());"
            f"create index on {name} (updated_at); insert into {name} values (1), (2), (3);"
            f"grant select on {name} to {role}"
        )
    replication.run()
    return replication


def changes_of(replication, name):
    statement = "select kind, detail from etl.schema_changes where table_name = %s order by change_id"
    return replication.on_target(statement, name)


def messages(replication):
    return [event.message for event in replication.events if event.kind == "notice"]


def alarms(replication):
    """Return the tables for which the page's alarm rings, three hours after all that has happened."""
    ago = "interval '4 hours'"
    replication.on_target(f"update etl.table_runs set started_at = started_at - {ago}, ended_at = ended_at - {ago}")
    (query,) = blocks("A table has not succeeded")
    return [row[0] for row in replication.on_target(query)]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_table_that_lost_something_fails_everywhere(items, role, loss):
    statement, expected = LOSSES[loss]
    items.on_source(statement.format(role=role))

    result = items.run()
    verdicts = {found.table_name: found for found in verify(items.settings)}
    status = {found.table_name: found for found in read_status(items.settings)}

    found = {table.table_name: table for table in result.tables}
    assert found["items"].status == "failed"
    assert expected in str(found["items"].error)
    assert expected in str(verdicts["items"].error)
    assert expected in str(status["items"].error)
    assert status["items"].status == "failed"
    assert [kind for kind, _ in changes_of(items, "items")] == ["table_loaded"]
    others = (found["notes"].status, verdicts["notes"].is_equal)
    assert others == (("succeeded", True) if loss != "usage of the schema" else ("failed", False))
    assert "items" in alarms(items)


def test_status_shows_a_loss_before_the_next_run(items, role):
    before = {found.table_name: found.status for found in read_status(items.settings)}
    items.on_source(f"revoke select on items from {role}")

    after = {found.table_name: found for found in read_status(items.settings)}

    assert before == {"items": "succeeded", "notes": "succeeded"}
    assert after["items"].status == "failed"
    assert NO_GRANT in str(after["items"].error)
    assert after["notes"].status == "succeeded"


def test_table_that_is_readable_again_succeeds(items, role):
    items.on_source(f"revoke select on items from {role}")
    items.run()
    items.on_source(f"grant select on items to {role}; insert into items values (4)")

    assert statuses(items.run()) == {"items": "succeeded", "notes": "succeeded"}
    assert items.on_target("select count(*) from raw.items") == [(4,)]


def test_raw_table_that_the_ledger_does_not_know_fails_too(items, role):
    items.on_source(f"revoke select on items from {role}")
    items.on_target("delete from etl.watermarks where table_name = 'items'")

    assert statuses(items.run()) == {"items": "failed", "notes": "succeeded"}


def test_first_load_that_broke_off_and_lost_its_grant_fails(replication, role, monkeypatch):
    replication.on_source(f"create table items (n int primary key, note text); grant select on items to {role}")
    replication.on_source("insert into items select n, repeat('x', 50) from generate_series(1, 2000) as n")
    add_range, calls = RawLoad.add_range, []

    def break_off(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise TableError("broken off")
        return add_range(self, *arguments, **options)

    monkeypatch.setattr(RawLoad, "add_range", break_off)
    replication.run(load_range_blocks=1)
    replication.on_source(f"revoke select on items from {role}; create table notes (n int primary key)")
    replication.on_source(f"grant select on notes to {role}")

    result = replication.run()

    assert replication.on_target("select table_name from etl.loads") == [("items",)]
    assert statuses(result) == {"items": "failed", "notes": "succeeded"}


def test_source_table_dropped_before_it_is_read_fails_clearly(items, monkeypatch):
    open_reader = Source.open_reader

    def drop_first(self, table, snapshot):
        items.on_source("drop table if exists items")
        return open_reader(self, table, snapshot)

    monkeypatch.setattr(Source, "open_reader", drop_first)

    found = {table.table_name: table for table in items.run().tables}

    assert pick(found["items"], "status", "retries") == ("failed", 0)
    assert "if it was dropped or renamed meanwhile, run again" in str(found["items"].error)
    assert found["notes"].status == "succeeded"


def test_copy_of_a_raw_table_is_not_called_missing(items):
    items.on_target("create table raw.items_backup as table raw.items")

    items.run()

    assert not [message for message in messages(items) if "backup" in message]


def test_shared_run_fails_the_table_that_lost_its_grant(items, role):
    items.on_source(f"revoke select on items from {role}")
    run = shared_run.begin(items.settings, shared_by="test", observe=items.events.append)
    results = [
        shared_run.replicate(items.settings, run.run_id, name, observe=items.events.append) for name in run.table_names
    ]
    ended = shared_run.end(items.settings, run.run_id, observe=items.events.append)

    assert {name: status for result in results for name, status in statuses(result).items()}["items"] == "failed"
    assert ended.failed_tables == ("items",)


def test_dropped_table_is_called_dropped_once_and_rings_no_alarm(items):
    items.on_source("drop table items")
    items.run()
    items.run()

    (told,) = [message for message in messages(items) if "public.items" in message]
    assert told == (
        "there is no table public.items on the source any more: it was dropped; raw.items stays as it is: drop it once "
        "it is no longer read"
    )
    assert changes_of(items, "items")[1:] == [
        ("table_missing", "there is no table public.items on the source any more: it was dropped; raw keeps its rows")
    ]
    assert {found.table_name: found.status for found in read_status(items.settings)}["items"] == "dropped"
    assert "items" not in alarms(items)


def test_verify_says_that_a_dropped_table_is_not_compared(items):
    items.on_source("drop table items")

    verdicts = verify(items.settings, observe=items.events.append)
    told = [message for message in messages(items) if "public.items" in message]
    items.on_target("drop table raw.items")
    items.events.clear()
    verify(items.settings, observe=items.events.append)

    assert [found.table_name for found in verdicts] == ["notes"]
    assert len(told) == 1
    assert [message for message in messages(items) if "public.items" in message] == []


def test_renamed_table_is_called_renamed(items):
    items.on_source("alter table items rename to goods")

    items.run()

    ((_, detail),) = changes_of(items, "items")[1:]
    assert detail == "there is no table public.items on the source any more: it was renamed to public.goods; " + (
        "raw keeps its rows"
    )


def test_left_out_table_is_called_left_out_until_it_returns(items):
    only_notes = {"tables": {"items": {"skip": True}}}
    for configuration in (only_notes, {}, {"discover": False, "tables": {"notes": {}}}, {}):
        items.configure(configuration)
        items.run()
        items.run()

    assert [kind for kind, _ in changes_of(items, "items")] == [
        "table_loaded", "table_left_out", "table_returned", "table_left_out", "table_returned",
    ]  # fmt: skip
    assert "public.items is left out in tables.yml; raw.items stays as it is" in "\n".join(messages(items))


def test_status_of_a_left_out_table_says_so(items):
    items.configure({"tables": {"items": {"skip": True}}})
    items.run()

    assert {found.table_name: found.status for found in read_status(items.settings)}["items"] == "left out"
    assert "items" not in alarms(items)


def test_alarm_rings_again_for_a_table_that_returned(items, role):
    items.on_source("alter table items rename to away")
    items.run()
    items.on_source("alter table away rename to items")
    items.run()
    items.on_source(f"revoke select on items from {role}")
    items.run()

    assert "items" in alarms(items)


def test_new_table_without_key_is_told_by_run_and_verify(items, role):
    items.on_source(f"create table keyless (n int); grant select on keyless to {role}")

    result = items.run()
    ran = [message for message in messages(items) if "keyless" in message]
    items.events.clear()
    verify(items.settings, observe=items.events.append)
    verified = [message for message in messages(items) if "keyless" in message]

    assert statuses(result) == {"items": "succeeded", "notes": "succeeded"}
    assert len(ran) == len(verified) == 1
    assert "public.keyless has no primary key" in ran[0]
    assert ran[0].endswith("it is left out")


def test_partition_without_grant_is_read_through_its_parent(replication, role):
    replication.on_source(
        "create table parts (n int primary key) partition by range (n);"
        "create table low partition of parts for values from (0) to (10);"
        "create table high partition of parts for values from (10) to (20);"
        f"insert into parts select generate_series(1, 15); grant select on parts to {role}"
    )

    result = replication.run_one("parts", load_range_blocks=1)
    replication.on_source("delete from parts where n in (2, 12); insert into parts values (19)")
    replication.on_source("select pg_stat_force_next_flush()")
    replication.run_one("parts")
    (found,) = verify(replication.settings)

    assert result.rows_inserted == 15
    assert found.is_equal, found


def test_table_dropped_during_a_run_is_not_lost_from_its_result(items, monkeypatch):
    """The attempt fails with an error that a retry may mend; at the retry, the table is not there."""
    open_reader = Source.open_reader

    def drop_first(self, table, snapshot):
        if table.name == "items":
            items.on_source("drop table items")
            raise SourceChangedError("public.items was truncated or rewritten; read again")
        return open_reader(self, table, snapshot)

    monkeypatch.setattr(Source, "open_reader", drop_first)

    result = items.run()

    found = {table.table_name: table for table in result.tables}
    assert result.has_failures
    assert pick(found["items"], "status", "retries") == ("failed", 1)
    assert "items was dropped or renamed on the source during the run: run again" in str(found["items"].error)
    assert found["notes"].status == "succeeded"


# Nothing to do


def nothing_configurations():
    leaves_out = "expected tables to replicate in schema public of the source, found none: tables.yml leaves out all 2"
    return {
        "misspelt schema": (
            "schema: pubic",
            "",
            "expected tables in schema pubic of the source, found none: that schema does not exist; schemas with "
            "tables: public; correct `schema:` in tables.yml",
        ),
        "misspelt schema and a table": ("{schema: pubic, tables: {items: {}}}", "", "that schema does not exist"),
        "empty schema": ("schema: empty", "create schema empty", "that schema has no tables; schemas with"),
        "all skipped": ("tables: {items: {skip: true}, notes: {skip: true}}", "", leaves_out),
        "none named": ("discover: false", "", leaves_out),
    }


@pytest.mark.parametrize("case", nothing_configurations())
@pytest.mark.parametrize("command", ["run", "verify", "status"])
def test_a_command_over_no_tables_is_a_configuration_error(items, role, case, command):
    text, statement, expected = nothing_configurations()[case]
    if statement:
        items.on_source(statement.format(role=role))
    runs = items.on_target("select count(*) from etl.runs")

    finished = items.command(
        command,
        SOURCE_DATABASE_URL=items.settings.source_url,
        ETL_TABLES=str(items.write_tables(text + "\n")),
    )

    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert expected in finished.stderr
    assert "Traceback" not in finished.stderr
    assert items.on_target("select count(*) from etl.runs") == runs


def test_role_that_sees_nothing_is_a_configuration_error(replication, role):
    replication.on_source("create table items (item_id int primary key)")
    with pytest.raises(ConfigurationError, match=r"replicated\npublic.items cannot be read: run on the source: grant"):
        replication.run()
    replication.on_source(f"revoke usage on schema public from {role}, public")

    with pytest.raises(
        ConfigurationError, match="that can be read: run on the source: grant usage on schema public to"
    ):
        replication.run()


def test_schema_with_views_only_is_a_configuration_error(replication):
    replication.on_source("create view numbers as select 1 as n")

    with pytest.raises(ConfigurationError, match="it has views and foreign tables only"):
        replication.run()


def test_schema_of_other_tables_does_not_make_these_dropped(items, role):
    """Whoever names another schema that exists gets each table's own place, and no table is called missing."""
    items.on_source(
        f"create schema other; create table other.things (n int primary key); grant usage on schema other "
        f"to {role}; grant select on other.things to {role}"
    )
    items.configure({"schema": "other"})

    result = items.run()

    assert statuses(result) == {"items": "failed", "notes": "failed", "things": "succeeded"}
    found = {table.table_name: str(table.error) for table in result.tables}
    assert "the table that raw.items was loaded from is public.items: correct `schema:`" in found["items"]


def test_a_dropped_table_named_in_a_command_fails(items):
    items.on_source("drop table items")

    (result,) = items.run("items").tables
    (found,) = verify(items.settings, ("items",))

    expected = "expected a table public.items on the source, found none (there is no table public.items on the source"
    assert expected in str(result.error)
    assert expected in str(found.error)


def test_json_status_shows_what_cannot_be_read(items, role):
    items.on_source(f"revoke select on items from {role}")

    finished = items.command("status", "--json", SOURCE_DATABASE_URL=items.settings.source_url)

    found = {table["table_name"]: table for table in json.loads(finished.stdout)}
    assert pick(found["items"], "status") == ("failed",)
    assert NO_GRANT in found["items"]["error"]
