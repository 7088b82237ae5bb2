"""Rows that go from the source, rows that come back, and what must not be taken for either."""

import json
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.commands.verify import verify
from etl.compare import differences
from etl.compare.buckets import MIN_BLOCK_BITS
from etl.errors import TableError
from etl.ledger.builds import read_built_run
from etl.model import RunOptions
from tests.examples import ON_SERVERS
from tests.results import pick, statuses

BLOCK_KEYS = 2**MIN_BLOCK_BITS  # successive integer keys of one bucket
KEYS = {
    "bigint": "n::bigint",
    "integer": "n",
    "uuid": "md5(n::text)::uuid",
    "text": "chr(65 + n %% 58) || 'é' || n",
    "numeric": "n / 10.0",
    "timestamptz": "'2024-01-01Z'::timestamptz + n * interval '1 hour'",
    "character(9)": "n::text",
    "public.mood": "('{sad,ok,HAPPY}'::public.mood[])[n]",
    "integer[]": "array[n %% 7, n]",
}
COMPOSITE = ("bigint", "text", "uuid")


def make_items(replication, rows=30, keys=("bigint",)):
    """Make a table with a key of these types and replicate it."""
    replication.on_source("create type mood as enum ('sad', 'ok', 'HAPPY')")
    names = [f"k{place}" for place in range(len(keys))]
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, keys, strict=True))
    replication.on_source(
        f"create table items (n int not null, {columns}, note text, updated_at timestamptz not null default now(), "
        f"primary key ({', '.join(names)})); create index on items (updated_at)"
    )
    add_items(replication, 1, rows, keys)
    replication.run_one("items")


def add_items(replication, first, last, keys=("bigint",), updated_at="now()"):
    values = ", ".join(KEYS[kind] for kind in keys)
    replication.on_source(
        f"insert into items select n, {values}, 'note', {updated_at} from generate_series(%s, %s) as n", first, last
    )


def live(replication):
    return {row[0] for row in replication.on_target("select n from raw.items where _etl_deleted_at is null")}


def tombstones(replication):
    return {row[0] for row in replication.on_target("select n from raw.items where _etl_deleted_at is not null")}


def in_source(replication):
    return {row[0] for row in replication.on_source("select n from items")}


def assert_same_keys(replication):
    assert live(replication) == in_source(replication)


def delete(replication, condition):
    replication.on_source(f"delete from items where {condition}")
    replication.on_source("select pg_stat_force_next_flush()")


@pytest.mark.parametrize("keys", [*[(kind,) for kind in KEYS if kind != "public.mood"], COMPOSITE], ids=str)
def test_deleted_rows_become_tombstones_for_any_key(replication, keys):
    make_items(replication, 50, keys)
    delete(replication, "n in (1, 17, 50)")

    result = replication.run_one("items")

    assert tombstones(replication) == {1, 17, 50}
    assert result.rows_deleted == 3
    assert replication.on_target("select distinct _etl_run_id from raw.items where _etl_deleted_at is not null") == [
        (replication.on_target("select max(run_id) from etl.runs")[0][0],)
    ]
    assert_same_keys(replication)


def test_deleted_rows_with_an_enum_key_become_tombstones(replication):
    make_items(replication, 3, ("public.mood",))
    replication.configure({"defaults": {"max_delete_fraction": 0.5}})
    delete(replication, "n = 2")

    replication.run_one("items")

    assert tombstones(replication) == {2}


def test_deletes_are_found_in_a_table_read_in_full(replication):
    replication.on_source("create table tags (tag text primary key)")
    replication.on_source("insert into tags values ('a'), ('b'), ('c'), ('d')")
    replication.run_one("tags")
    replication.on_source("delete from tags where tag = 'b'")
    replication.on_source("select pg_stat_force_next_flush()")

    replication.run_one("tags")

    assert replication.on_target("select tag from raw.tags where _etl_deleted_at is not null") == [("b",)]


@pytest.fixture
def items(replication):
    make_items(replication)
    return replication


@pytest.fixture
def scans(monkeypatch):
    """The tables whose keys were compared, in order."""
    found = []
    read = differences.read_source_checksums

    def spy(reader, comparison):
        found.append(comparison.table.name)
        return read(reader, comparison)

    monkeypatch.setattr(differences, "read_source_checksums", spy)
    return found


def test_no_scan_while_the_source_counts_no_deletes(items, scans):
    add_items(items, 31, 40)
    items.on_source("update items set note = 'new', updated_at = clock_timestamp() where n < 5")
    items.on_source("select pg_stat_force_next_flush()")

    items.run_one("items")
    items.run_one("items")

    assert scans == []


def test_rolled_back_delete_deletes_nothing(items, scans):
    with closing(items.open_source()) as session, session.cursor() as cursor:
        cursor.execute("delete from items where n = 3")
        session.rollback()
        cursor.execute("select pg_stat_force_next_flush()")
        session.rollback()

    items.run_one("items")

    assert tombstones(items) == set()
    assert len(scans) <= 1  # the server may count such a row


def test_delete_counted_late_is_found_by_a_later_run(items):
    """The session that deletes reports its counts only once it idles or ends."""
    session = items.open_source()
    session.autocommit = True
    with closing(session), session.cursor() as cursor:
        cursor.execute("select pg_stat_force_next_flush(); select 1")
        cursor.execute("delete from items where n in (4, 5)")
        items.run_one("items")
    items.on_source("select pg_stat_clear_snapshot()")
    items.run_one("items")

    assert_eventually_buried(items, {4, 5})


def assert_eventually_buried(replication, rows):
    for _ in range(100):
        if tombstones(replication) == rows:
            return
        replication.run_one("items")
    assert tombstones(replication) == rows


GATES = {
    "counters reset": "select pg_stat_reset()",
    "rewritten": "vacuum full items",
}


@pytest.mark.parametrize("gate", GATES)
def test_keys_are_compared_when_deletes_may_be_hidden(items, scans, gate):
    items.on_source(GATES[gate])

    items.run_one("items")
    items.run_one("items")

    assert scans == ["items"]


def test_keys_are_compared_periodically_without_counted_deletes(items, scans):
    """An update of a key counts as an update."""
    items.on_source("update items set k0 = k0 + 1000, n = n + 1000 where n = 7")
    items.run_one("items")
    before = list(scans)
    items.on_target("update etl.reconciliations set listed_at = listed_at - interval '24 hours'")

    items.run_one("items")

    assert before == []
    assert scans == ["items"]
    assert tombstones(items) == {7}
    assert_same_keys(items)


def test_keys_are_compared_on_request(items):
    items.on_source("update items set k0 = k0 + 1000, n = n + 1000 where n = 7")

    finished = items.command("run", "--reconcile")

    assert finished.returncode == 0, finished.stderr
    assert tombstones(items) == {7}


def test_table_with_deletes_none_keeps_its_rows(items, scans):
    items.configure({"tables": {"items": {"deletes": "none"}}})
    delete(items, "n = 1")

    items.run_one("items")

    assert scans == []
    assert tombstones(items) == set()


def test_reinserted_key_clears_its_tombstone(items):
    delete(items, "n = 9")
    items.run_one("items")
    was_buried = tombstones(items)
    add_items(items, 9, 9)

    items.run_one("items")

    assert was_buried == {9}
    assert tombstones(items) == set()
    assert_same_keys(items)


def test_row_restored_with_an_old_timestamp_is_loaded(items):
    delete(items, "n in (9, 10)")
    items.run_one("items")
    add_items(items, 9, 9, updated_at="'2001-01-01Z'")
    delete(items, "n = 11")

    result = items.run_one("items")

    assert tombstones(items) == {10, 11}
    assert result.rows_updated == 1
    assert_same_keys(items)


@pytest.mark.parametrize(
    "replace_rows",
    [
        "delete from items where n = 3; insert into items values (3, 3, 'old version', '2001-01-01Z')",
        "truncate items; insert into items table backup",
        "create table others (like items including all); insert into others table backup; "
        "alter table items rename to gone; alter table others rename to items",
        "truncate items; insert into items select n, k0, 'another note', updated_at from backup",
    ],
    ids=["a row", "all rows", "the table", "all rows with the same times"],
)
def test_older_versions_restored_on_the_source_are_loaded(replication, replace_rows):
    """As from a backup: their keys are in raw, and their watermarks are below the stored one."""
    make_items(replication)
    replication.on_source("create table backup as table items; alter table backup add primary key (k0)")
    replication.on_source("update items set note = 'newer', updated_at = clock_timestamp() where n = 3")
    replication.run_one("items")
    replication.on_source(f"{replace_rows}; select pg_stat_force_next_flush()")

    replication.run_one("items")

    source, raw = replication.rows("items")
    assert source == raw


@pytest.mark.parametrize("kind", ["int[]", "pair"])
def test_array_and_composite_keys_split_a_table_as_well(replication, kind):
    replication.on_source("create type pair as (a int, b text)")
    value = "array[n, 1]" if kind == "int[]" else "row(n, 'x')::pair"
    replication.on_source(f"create table items (k {kind} primary key, n int)")
    rows = 3 * BLOCK_KEYS
    replication.on_source(f"insert into items select {value}, n from generate_series(1, %s) as n", rows)
    replication.run_one("items")
    delete(replication, "n = 7")
    replication.on_target("delete from raw.items where n = 9")

    replication.run_one("items")

    assert tombstones(replication) == {7}
    assert_same_keys(replication)


def test_source_older_than_at_the_last_run_is_rejected(items):
    """A standby that lags, or a restored backup, lacks rows that nobody deleted."""
    items.on_target("update etl.watermarks set next_xid = (next_xid::bigint + 1000)::text")

    (result,) = items.run("items", options=RunOptions(reconcile=True)).tables

    assert result.status == "failed"
    assert "the source is older than at the last run" in result.error
    assert tombstones(items) == set()


def test_clock_that_was_ahead_does_not_prevent_comparison(items, scans):
    items.on_target("update etl.reconciliations set listed_at = listed_at + interval '300 days'")

    items.run_one("items")

    assert scans == ["items"]


def test_row_written_during_comparison_is_not_marked_deleted(items, monkeypatch):
    """It is newer than the run's snapshot on the source, and not in raw yet."""
    delete(items, "n = 1")
    read = differences.read_source_checksums

    def insert_first(reader, comparison):
        add_items(items, 31, 31)
        items.on_source("delete from items where n = 2")
        return read(reader, comparison)

    with monkeypatch.context() as patching:
        patching.setattr(differences, "read_source_checksums", insert_first)
        items.run_one("items")
    during = live(items)
    items.on_source("select pg_stat_force_next_flush()")
    items.run_one("items")

    assert during == set(range(2, 31))
    assert_same_keys(items)


def test_rejected_row_is_neither_marked_deleted_nor_loaded(items):
    items.on_target("alter table raw.items add check (n < 100) not valid")
    add_items(items, 100, 101)
    delete(items, "n = 1")

    result = items.run_one("items")

    assert pick(result, "rows_rejected", "rows_deleted") == (2, 1)
    assert live(items) == set(range(2, 31))


def test_too_many_deleted_rows_stop_the_table_until_confirmed(items):
    items.on_source("create table notes (note_id int primary key); insert into notes values (1)")
    items.on_source("truncate items")
    add_items(items, 30, 31)

    run = items.run()
    notes, result = sorted(run.tables, key=lambda table: table.table_name, reverse=True)
    kept = live(items)
    again = items.command("run")
    confirmed = items.command("run", "--allow-deletes", "items")

    assert statuses(run) == {"notes": "succeeded", "items": "failed"}, run
    assert "29 of 31 rows are missing from the source, more than max_delete_fraction = 0.3" in result.error
    assert "`etl run --allow-deletes items`" in result.error
    assert notes.status == "succeeded"
    assert kept == set(range(1, 32))
    assert again.returncode == 1
    assert confirmed.returncode == 0, confirmed.stderr
    assert live(items) == {30, 31}
    assert items.command("run").returncode == 0


@pytest.fixture
def tiers(replication):
    """A lookup table of three rows, replicated."""
    replication.on_source("create table tiers (tier text primary key, n int)")
    replication.on_source("insert into tiers values ('bronze', 1), ('silver', 2), ('gold', 3)")
    replication.run_one("tiers")
    return replication


def test_few_deletes_in_a_small_table_do_not_stop_it(tiers):
    tiers.on_source("delete from tiers where n <= 2; select pg_stat_force_next_flush()")

    assert tiers.run_one("tiers").rows_deleted == 2


def test_a_small_table_that_is_emptied_stops(tiers):
    tiers.on_source("truncate tiers")

    (result,) = tiers.run("tiers").tables

    assert result.status == "failed"
    assert "3 of 3 rows are missing from the source, more than max_delete_fraction = 0.3" in str(result.error)
    assert tiers.on_target("select count(*) from raw.tiers where _etl_deleted_at is null") == [(3,)]


@pytest.mark.parametrize("command", ["run", "reset", "verify"])
def test_max_delete_rows_is_configured_per_table(items, command):
    """Every command that deletes obeys it: 12 of 30 rows pass at 12, and stop at 11."""
    delete(items, "n <= 12")

    def play():
        if command == "verify":
            (found,) = verify(items.settings, ("items",), is_repair=True)
            return str(found.error)
        (found,) = items.run("items", options=RunOptions(full_refresh=command == "reset")).tables
        return str(found.error)

    items.configure({"tables": {"items": {"max_delete_rows": 11}}})
    refused = play()
    items.configure({"tables": {"items": {"max_delete_rows": 12}}})
    applied = play()

    assert "more than max_delete_fraction = 0.3 and max_delete_rows = 11 allow" in refused
    assert applied == "None"
    assert len(live(items)) == 18


def test_deletes_up_to_the_configured_limit_are_applied(items):
    items.configure({"defaults": {"max_delete_fraction": 0.5}})
    delete(items, "n <= 15")

    result = items.run_one("items")

    assert result.rows_deleted == 15


def test_rows_deleted_from_a_partition_are_found(replication, scans):
    replication.on_source(
        "create table items (n int primary key, note text) partition by range (n);"
        "create table low partition of items for values from (0) to (100);"
        "create table high partition of items for values from (100) to (200)"
    )
    replication.on_source("insert into items select n, '' from generate_series(90, 110) as n")
    replication.run_one("items")
    replication.on_source("delete from items where n in (91, 101)")
    replication.on_source("select pg_stat_force_next_flush()")
    replication.run_one("items")

    assert scans == ["items"]
    assert tombstones(replication) == {91, 101}


def test_only_keys_of_differing_buckets_are_transferred(replication, count_copied_lines):
    make_items(replication, 20 * BLOCK_KEYS)
    delete(replication, f"n = {5 * BLOCK_KEYS}")
    moved = count_copied_lines()

    replication.run_one("items")

    assert tombstones(replication) == {5 * BLOCK_KEYS}
    assert 0 < sum(moved) < 2 * BLOCK_KEYS


def test_table_loaded_before_reconciling_is_compared_once(items, scans):
    items.on_target("truncate etl.reconciliations")
    items.run_one("items")
    items.run_one("items")

    assert scans == ["items"]


def test_kill_between_tombstones_and_counters_is_recovered(items, monkeypatch):
    from etl.target.writer import Writer

    delete(items, "n in (1, 2)")
    with monkeypatch.context() as patching:
        patching.setattr(Writer, "save_check", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            items.run_one("items")

    items.run_one("items")

    assert tombstones(items) == {1, 2}


def make_numbered(replication):
    replication.on_source("create table visits (n bigint generated always as identity primary key, page text)")
    replication.on_source("insert into visits (page) select 'home' from generate_series(1, 20)")
    replication.configure({"tables": {"visits": {"watermark": "n"}}})
    replication.run_one("visits")


@pytest.mark.parametrize("gone", ["n > 17", "n = 20", "n in (1, 20)"])
def test_newest_rows_of_a_numbered_table_can_be_deleted(replication, gone):
    """Its maximum falls below the watermark, and its sequence tells that it was not restarted."""
    make_numbered(replication)
    replication.on_source(f"delete from visits where {gone}; select pg_stat_force_next_flush()")
    replication.run_one("visits")
    replication.on_source("insert into visits (page) values ('new')")
    replication.run_one("visits")

    assert replication.on_target("select n from raw.visits where _etl_deleted_at is null order by 1") == (
        replication.on_source("select n from visits order by 1")
    )


def test_missing_sequence_privilege_names_the_grant(replication, read_as_role):
    make_numbered(replication)
    read_as_role(True)
    replication.on_source("delete from visits where n > 17")

    (result,) = replication.run("visits").tables

    assert result.status == "failed"
    assert "its sequence cannot be read" in result.error
    assert "grant select on the sequence" in result.error


# Purging


def make_builds(replication, run_id):
    replication.on_target("create schema if not exists intermediate")
    replication.on_target("create table if not exists intermediate.dbt_builds (model_name text, run_id bigint)")
    replication.on_target("delete from intermediate.dbt_builds")
    replication.on_target("insert into intermediate.dbt_builds values ('fct_a', %s), ('fct_b', %s)", run_id + 5, run_id)


def test_tombstones_are_purged_when_old_and_read_by_all_models(items):
    items.configure({"defaults": {"tombstone_days": 7, "reconcile_every_hours": 0}})
    delete(items, "n = 1")
    items.run_one("items")
    items.on_target("update raw.items set _etl_deleted_at = now() - interval '8 days' where n = 1")
    delete(items, "n = 2")
    items.run_one("items")
    (run_id,) = items.on_target("select _etl_run_id from raw.items where n = 1")[0]
    without_build = tombstones(items)
    make_builds(items, run_id - 1)
    items.run_one("items")
    before_its_build = tombstones(items)
    make_builds(items, run_id)
    items.run_one("items")

    assert without_build == before_its_build == {1, 2}
    assert tombstones(items) == {2}


def test_purge_without_access_to_builds_names_the_grant(items):
    items.configure({"defaults": {"tombstone_days": 7, "reconcile_every_hours": 0}})
    delete(items, "n = 1")
    items.run_one("items")
    make_builds(items, 1000)
    (database,) = items.on_target("select current_database()")[0]
    role = f"purger_{database}"
    items.on_target(f"create role {role}; grant select on all tables in schema raw, etl to {role}")
    items.on_target(f"grant usage on schema raw, etl to {role}")
    try:
        with items.target.cursor() as cursor:
            cursor.execute(f"begin; set role {role}")
            with pytest.raises(TableError, match="grant usage on schema intermediate"):
                read_built_run(cursor)
            cursor.execute("reset role")
            cursor.execute(f"grant usage on schema intermediate to {role}")
            cursor.execute(f"grant select on intermediate.dbt_builds to {role}")
            cursor.execute(f"set role {role}")
            assert read_built_run(cursor) == 1000
            cursor.execute("reset role; commit")
    finally:
        items.on_target(f"reset role; drop owned by {role}; drop role {role}")


def test_tombstones_are_kept_unless_configured(items):
    items.configure({"defaults": {"reconcile_every_hours": 0}})
    delete(items, "n = 1")
    items.run_one("items")
    make_builds(items, 1000)
    items.on_target("update raw.items set _etl_deleted_at = now() - interval '10 years' where n = 1")

    items.run_one("items")

    assert tombstones(items) == {1}


# Histories

ROWS = st.integers(1, 60)
CHANGES = {
    "insert": "insert into items (n, k0, note) values (%(n)s, %(n)s, 'new') on conflict do nothing",
    "insert with an old time": (
        "insert into items (n, k0, note, updated_at) values (%(n)s, %(n)s, 'old', '2001-01-01Z') on conflict do nothing"
    ),
    "update": "update items set note = note || '!', updated_at = clock_timestamp() where n = %(n)s",
    "delete": "delete from items where n = %(n)s",
    "delete some": "delete from items where n between %(n)s and %(n)s + 5",
    "change the key": (
        "update items as i set k0 = k0 + 100, n = n + 100, updated_at = clock_timestamp() where n = %(n)s "
        "and not exists (select from items as o where o.k0 = i.k0 + 100)"
    ),
    "truncate": "truncate items",
    "rewrite": "vacuum full items",
    "reset the counters": "select pg_stat_reset()",
}


CHANGE = st.tuples(st.sampled_from(sorted(CHANGES)), ROWS)


@pytest.mark.has_long_form
@given(histories=st.lists(st.lists(CHANGE, max_size=6), min_size=1, max_size=6))
@settings.get_profile(ON_SERVERS)
def test_both_sides_have_the_same_keys_after_reconciling(replication, histories):
    replication.on_source("drop table if exists items; drop type if exists mood")
    replication.on_target("drop schema if exists raw, etl cascade")
    replication.configure({"defaults": {"batch_rows": 4, "max_delete_fraction": 1}})
    make_items(replication, 20)
    for changes in histories:
        for name, n in changes:
            execute(replication, CHANGES[name], n)
        replication.run_one("items")

    (result,) = replication.run("items", options=RunOptions(reconcile=True)).tables

    assert result.status == "succeeded", result.error
    assert_same_keys(replication)
    assert set(replication.on_source("select n, k0, note from items")) == set(
        replication.on_target("select n, k0, note from raw.items where _etl_deleted_at is null")
    )


def execute(replication, statement, n):
    with replication.source.cursor() as cursor:
        cursor.execute(statement, {"n": n})


def test_the_ledger_counts_deleted_rows(items):
    delete(items, "n in (1, 2, 3)")

    finished = items.command("run", "--json")

    (record,) = json.loads(finished.stdout)["tables"]
    assert record["rows_deleted"] == 3
    assert items.on_target("select rows_deleted from etl.table_runs order by run_id desc limit 1") == [(3,)]
    assert "3 deleted" in finished.stderr
