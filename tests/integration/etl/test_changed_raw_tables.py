"""Raw tables that somebody drops, renames or changes while a command is at work on them: no traceback, no lasting harm.

Whatever can be loaded again is loaded again in the same run; for the rest, the table fails with the next step.
"""

import pytest

from etl.commands.verify import verify
from etl.model import RunOptions
from etl.source.reader import Reader
from etl.target.new_table import RawLoad
from etl.target.writer import Writer

DROP = "drop table raw.items cascade"
RENAME = "alter table raw.items rename to kept"
DROP_LOADING = """
    do $$ begin
        execute (
            select 'drop table ' || oid::regclass from pg_class
            where relkind = 'r' and relname ~ '^_etl_loading_' order by oid desc limit 1
        );
    end $$
"""
VIEW = "drop table raw.items; create view raw.items as select 1 as item_id"


@pytest.fixture
def items(replication):
    """3,000 items in several blocks, replicated; one is then deleted and one changed. Tombstones are purged at once."""
    replication.on_source(
        "create table items (item_id int primary key, note text, updated_at timestamptz not null default now())"
    )
    replication.on_source(
        "insert into items select n, repeat('x', 20), now() - interval '1 day' from generate_series(1, 3000) as n"
    )
    replication.configure({"defaults": {"tombstone_days": 0}})
    replication.run_one("items")
    replication.on_target("create schema intermediate; create table intermediate.dbt_builds (run_id bigint)")
    replication.on_target("insert into intermediate.dbt_builds values (99)")
    replication.on_source("delete from items where item_id = 5; select pg_stat_force_next_flush()")
    replication.on_source("update items set note = 'new', updated_at = now() where item_id = 6")
    return replication


@pytest.fixture
def act(items, monkeypatch):
    """A function: before the n-th call of a method, another session runs a statement on the target."""

    def plan(owner, method, statement, nth=1):
        real, calls = getattr(owner, method), []

        def call(self, *arguments, **options):
            calls.append(method)
            if len(calls) == nth:
                items.on_target(statement)
            return real(self, *arguments, **options)

        monkeypatch.setattr(owner, method, call)
        return calls

    return plan


def assert_complete(replication):
    rows = "select item_id, note, updated_at from {} order by 1"
    live = "(select * from raw.items where _etl_deleted_at is null) as r"
    assert replication.on_target(rows.format(live)) == replication.on_source(rows.format("items"))


@pytest.mark.parametrize("statement", [DROP, RENAME], ids=["drop", "rename"])
@pytest.mark.parametrize("method", ["check_replacement", "add_range", "publish"])
def test_reset_completes_without_the_old_table(items, act, method, statement):
    calls = act(RawLoad, method, statement)

    (result,) = items.run("items", options=RunOptions(full_refresh=True), load_range_blocks=1).tables

    assert calls
    assert result.status == "succeeded", result.error
    assert_complete(items)


@pytest.mark.parametrize("statement", [DROP, RENAME], ids=["drop", "rename"])
@pytest.mark.parametrize("method", ["open_batch", "bury_rows", "purge_tombstones"])
def test_run_loads_a_table_that_was_dropped_meanwhile(items, act, method, statement):
    act(Writer, method, statement)

    (result,) = items.run("items").tables

    assert (result.status, result.retries) == ("succeeded", 1), result.error
    assert_complete(items)
    ((error,),) = items.on_target("select error from etl.table_runs order by run_id desc limit 1")
    assert error.startswith("raw.items was dropped or renamed by another session meanwhile: run again")


DROP_KEY = """
    do $$ declare name text; begin
        select conname into name from pg_constraint where conrelid = 'raw.items'::regclass and contype = 'p';
        execute format('alter table raw.items drop constraint %I', name);
    end $$
"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "alter table raw.items drop column _etl_run_id",
            'expected column "_etl_run_id" in raw, found none; reload it',
        ),
        (DROP_KEY, "the key changed from (none) to (item_id); reload it"),
        (VIEW, "expected raw.items to be a table, found a view or another relation: drop or rename it"),
        ("drop schema raw cascade", "schema raw is missing on the target: create it, with the grants"),
    ],
    ids=["metadata", "key", "view", "schema"],
)
def test_change_that_no_run_mends_names_the_next_step(items, act, statement, expected):
    act(Writer, "open_batch", statement)

    (result,) = items.run("items").tables
    (again,) = items.run("items").tables

    assert (result.status, again.status) == ("failed", "failed")
    assert expected in str(result.error)
    assert expected in str(again.error)


def test_reset_of_a_view_in_place_of_the_table_is_refused(items):
    items.on_target(VIEW)

    finished = items.command("reset", "items")

    assert finished.returncode == 1
    assert "expected raw.items to be a table, found a view" in finished.stderr


@pytest.mark.parametrize(("method", "nth"), [("add_range", 3), ("publish", 1)])
def test_reset_starts_over_when_its_new_table_is_dropped(items, act, method, nth):
    act(RawLoad, method, DROP_LOADING, nth)

    (result,) = items.run("items", options=RunOptions(full_refresh=True), load_range_blocks=1).tables

    assert (result.status, result.retries) == ("succeeded", 1), result.error
    assert_complete(items)


def test_broken_load_whose_table_was_dropped_starts_over(items, act):
    items.on_target("drop table raw.items; delete from etl.watermarks")
    act(Reader, "block_counts", "select 1 / 0", nth=4)
    with pytest.raises(Exception, match="division by zero"):
        items.run("items", load_range_blocks=1)
    assert items.on_target("select table_name from etl.loads") == [("items",)]
    items.on_target(DROP_LOADING)

    items.run_one("items", load_range_blocks=1)

    assert_complete(items)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (DROP, "raw.items was dropped or renamed by another session meanwhile: run again"),
        (RENAME, "raw.items was dropped or renamed by another session meanwhile: run again"),
        ("alter table raw.items drop column note", "raw.items was changed (it has no column note) by another session"),
        ("drop schema raw cascade", "schema raw is missing on the target: create it"),
    ],
    ids=["drop", "rename", "column", "schema"],
)
@pytest.mark.parametrize("is_repair", [False, True], ids=["verify", "repair"])
def test_verify_says_what_happened_to_the_raw_table(items, act, statement, expected, is_repair):
    act(Writer, "at_snapshot", statement)

    (found,) = verify(items.settings, ("items",), is_repair=is_repair)

    assert expected in str(found.error)


def test_an_error_that_no_change_explains_stays_as_it_is(items):
    """A trigger that somebody put on the raw table reads a table that is not there."""
    items.on_target(
        "create function raw.audit() returns trigger language plpgsql as "
        "'begin perform from raw.nowhere; return new; end'; "
        "create trigger audit before insert or update on raw.items for each row execute function raw.audit()"
    )

    (result,) = items.run("items").tables

    assert (result.status, result.retries) == ("failed", 0)
    assert 'relation "raw.nowhere" does not exist' in str(result.error)
    assert "another session" not in str(result.error)


def test_a_lost_ledger_ends_the_run_without_a_traceback(items, act):
    act(Writer, "open_batch", "drop schema etl cascade")
    with pytest.raises(Exception, match=r"the run cannot continue: .* run again"):
        items.run("items")

    items.run_one("items")

    assert_complete(items)
