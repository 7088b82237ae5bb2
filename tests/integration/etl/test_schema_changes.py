"""What a run does when the columns, the key or the set of tables of the source have changed."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest

from etl.ledger import runs
from etl.model import RunOptions
from tests.results import pick

VIEWS = """
    create role modeller;
    grant usage, create on schema staging to modeller;
    grant usage on schema raw to modeller;
    grant select on raw.items to modeller;
    set role modeller;
    create view staging.stg_items with (security_barrier = true) as
        select item_id, amount, note, updated_at from raw.items where _etl_deleted_at is null;
    create view staging.totals as select sum(amount) as total, count(*) as items from staging.stg_items;
    create view staging.both as
        select s.item_id, t.total from staging.stg_items as s cross join staging.totals as t;
    grant select on staging.totals to public;
    grant select (item_id) on staging.stg_items to analyst_of_items;
    comment on view staging.stg_items is 'One row per item.';
    comment on column staging.stg_items.amount is 'In cents.';
    reset role;
"""
DESCRIBE_VIEWS = """
    select c.oid::regclass::text, c.relkind::text, pg_get_userbyid(c.relowner), c.reloptions,
        (select array_agg(entry::text order by entry::text) from unnest(c.relacl) as entry),
        pg_get_viewdef(c.oid), obj_description(c.oid),
        (
            select array_agg(row(a.attname, a.attacl, col_description(c.oid, a.attnum))::text order by a.attnum)
            from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0
        )
    from pg_class as c where c.relnamespace = 'staging'::regnamespace and c.relkind in ('v', 'm') order by 1
"""

WAITING_FOR_ITEMS = "select exists (select from pg_locks where relation = 'items'::regclass and not granted)"


def make_items(replication):
    replication.on_source(
        "create table items (item_id int primary key, amount int, note varchar(20), price numeric(8, 2), "
        "updated_at timestamptz not null default now()); create index on items (updated_at)"
    )
    add_items(replication, 1, 20)
    # Old enough that no run reads them again for their watermark.
    replication.on_source("update items set updated_at = '2024-01-01Z'")
    replication.run_one("items")


def add_items(replication, first, last):
    replication.on_source(
        "insert into items (item_id, amount, note, price) "
        "select n, n, 'note', n / 4.0 from generate_series(%s, %s) as n",
        first,
        last,
    )


@pytest.fixture
def items(replication):
    """Twenty old items, replicated."""
    make_items(replication)
    return replication


@pytest.fixture
def viewed(items):
    """The items, with views on their raw table that belong to another role."""
    items.on_target("create schema staging; create role analyst_of_items")
    items.on_target(VIEWS)
    yield items
    items.on_target("drop owned by modeller, analyst_of_items cascade; drop role modeller, analyst_of_items")


def assert_equal(replication, table_name="items"):
    source, raw = replication.rows(table_name)
    assert source == raw


def changes_of(replication, table_name="items"):
    """Return kind, column and detail of what was recorded after the first load."""
    return replication.on_target(
        "select kind, column_name, detail from etl.schema_changes where table_name = %s and run_id > 1 order by 1, 2",
        table_name,
    )


def failure_of(replication, table_name="items"):
    (result,) = replication.run(table_name).tables
    assert result.status == "failed"
    return result.error


def raw_type(replication, column):
    return replication.on_target(
        "select format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'raw.items'::regclass "
        "and attname = %s",
        column,
    )[0][0]


ADDED = {
    "without default": ("add column extra int", 0),
    "with a constant default": ("add column extra int default 7", 20),
    "with a default computed row by row": ("add column extra text default md5(random()::text)", 20),
    "as identity": ("add column extra bigint generated always as identity", 20),
    "computed from others": ("add column extra int generated always as (amount * 2) stored", 20),
    "of an enum": ("add column extra mood default 'ok'", 20),
    "not null": ("add column extra text not null default ''", 20),
    "with another name": ('add column "Extra ""column""" int default 7', 20),
    "several": ("add column extra int, add column more text default 'x'", 20),
}


@pytest.mark.parametrize(("definition", "filled"), ADDED.values(), ids=ADDED)
def test_added_column_is_filled_for_old_rows(items, definition, filled):
    items.on_source("create type mood as enum ('ok')")
    items.on_source(f"alter table items {definition}")
    add_items(items, 21, 22)

    result = items.run_one("items")

    assert_equal(items)
    assert result.rows_updated == filled
    assert {kind for kind, _, _ in changes_of(items)} == {"column_added"}
    assert items.run_one("items").rows_updated == 0


def test_old_rows_are_not_read_for_a_column_without_values(items):
    items.on_source("alter table items add column extra int")

    result = items.run_one("items")

    assert result.rows_read == 0
    assert raw_type(items, "extra") == "integer"


def test_manually_filled_new_column_is_loaded(items):
    items.on_source("alter table items add column extra int; update items set extra = 5 where item_id < 3")

    items.run_one("items")

    assert_equal(items)


def test_interrupted_column_addition_leaves_no_row_unfilled(items, monkeypatch):
    """The column comes with the first batch; what the others would have filled is read by the next run."""
    items.configure({"defaults": {"batch_rows": 4}})
    items.on_source("alter table items add column extra int default 7")
    batches = []
    add_batch = runs.add_batch

    def break_at_third(*arguments):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        add_batch(*arguments)

    with monkeypatch.context() as patching:
        patching.setattr(runs, "add_batch", break_at_third)
        with pytest.raises(KeyboardInterrupt):
            items.run_one("items")
    filled = items.on_target("select count(*) from raw.items where extra = 7")

    items.run_one("items")

    assert filled == [(8,)]
    assert_equal(items)
    assert len(changes_of(items)) == 1


def test_a_dropped_column_stays_with_its_values(items):
    items.on_source("alter table items drop column note")
    add_items_without_note = "insert into items (item_id, amount) values (21, 21)"
    items.on_source(add_items_without_note)

    result = items.run_one("items")
    items.run_one("items")

    assert result.rows_inserted == 1
    assert items.on_target("select note, count(*) from raw.items group by 1 order by 1") == [("note", 20), (None, 1)]
    assert changes_of(items) == [("column_dropped", "note", "dropped from the source; raw keeps its values")]


def test_renamed_column_is_reported_as_dropped_and_added(items):
    items.on_source("alter table items rename column note to remark")

    items.run_one("items")

    assert items.on_target("select distinct note, remark from raw.items") == [("note", "note")]
    assert [(kind, name) for kind, name, _ in changes_of(items)] == [
        ("column_added", "remark"),
        ("column_dropped", "note"),
    ]
    told = [event.message for event in items.events if event.kind == "notice"]
    assert any('column "remark" added' in text and "if a column was renamed" in text for text in told), told


def test_recreated_column_is_filled_again(items):
    items.on_source("alter table items drop column note; alter table items add column note varchar(20) default 'new'")

    items.run_one("items")

    assert_equal(items)
    assert [kind for kind, _, _ in changes_of(items)] == ["column_replaced"]


@pytest.mark.parametrize("gone", ["rename note to remark", "drop column note"])
def test_column_returning_under_an_old_name_is_filled_again(items, gone):
    """Raw kept the column, with values from before."""
    items.on_source(f"alter table items {gone}")
    items.on_source("insert into items (item_id) values (21)")
    items.run_one("items")
    back = "rename remark to note" if "rename" in gone else "add column note varchar(20) default 'again'"
    items.on_source("update items set amount = 0 where item_id = 2")
    items.on_source(f"alter table items {back}; update items set note = 'silent' where item_id = 4")

    items.run_one("items")

    read = "select item_id, note from {} order by 1"
    assert items.on_source(read.format("items")) == items.on_target(read.format("raw.items"))


def test_more_columns_than_function_arguments_can_be_added(items):
    items.on_source("alter table items " + ", ".join(f"add column c{n} int default 1" for n in range(120)))

    items.run_one("items")

    assert_equal(items)


def test_values_recomputed_by_a_type_change_arrive(items):
    items.on_source("alter table items alter amount type bigint using amount * 100")

    items.run_one("items")

    assert_equal(items)


WIDENED = {
    "an integer": ("amount", "bigint", "bigint", "9000000000"),
    "an integer to numeric": ("amount", "numeric", "numeric", "0.5"),
    "a text to a longer one": ("note", "varchar(40)", "character varying(40)", "repeat('x', 40)"),
    "a text to one of any length": ("note", "text", "text", "repeat('x', 4000)"),
    "digits before the point": ("price", "numeric(10, 2)", "numeric(10,2)", "12345678.91"),
    "digits after the point": ("price", "numeric(10, 4)", "numeric(10,4)", "1.2345"),
    "a numeric without limits": ("price", "numeric", "numeric", "1e40"),
}


@pytest.mark.parametrize(("column", "given", "expected", "value"), WIDENED.values(), ids=WIDENED)
def test_type_is_widened_below_dependent_views(viewed, column, given, expected, value):
    before = viewed.on_target(DESCRIBE_VIEWS)
    viewed.on_source(f"alter table items alter column {column} type {given}")
    viewed.on_source(f"update items set {column} = {value}, updated_at = now() where item_id = 3")

    viewed.run_one("items")

    assert raw_type(viewed, column) == expected
    assert_equal(viewed)
    assert viewed.on_target(DESCRIBE_VIEWS) == before
    assert [(kind, name) for kind, name, _ in changes_of(viewed)] == [("column_widened", column)]
    assert viewed.on_target("select items from staging.totals") == [(20,)]


def test_the_key_can_be_widened(viewed):
    viewed.on_source("alter table items alter column item_id type bigint")
    viewed.on_source("insert into items (item_id) values (9000000000)")

    viewed.run_one("items")

    assert_equal(viewed)
    assert raw_type(viewed, "item_id") == "bigint"


def test_readers_never_miss_a_view_while_a_type_is_widened(viewed, monkeypatch):
    """They wait for the transaction, or see what was there before."""
    seen = []
    record = runs.record_changes

    def look(*arguments):
        with closing(psycopg2.connect(viewed.target_url)) as reader, reader.cursor() as cursor:
            cursor.execute("select count(*) from pg_class where relnamespace = 'staging'::regnamespace")
            seen.append(cursor.fetchone())
        record(*arguments)

    monkeypatch.setattr(runs, "record_changes", look)
    viewed.on_source("alter table items alter column amount type bigint")

    viewed.run_one("items")

    assert seen == [(3,)]


REFUSED = {
    "a narrower type": ("alter column amount type smallint", "changed from integer to smallint"),
    "a shorter text": ("alter column note type varchar(10)", "to character varying(10)"),
    "a date as timestamp": ("alter column day type timestamp", "changed from date to timestamp without time zone"),
    "a text as number": ("alter column note type int using 1", "to integer"),
    "a number as text": ("alter column amount type text", "changed from integer to text"),
    "another key": (
        "drop constraint items_pkey, add primary key (item_id, updated_at)",
        "the key changed from (item_id) to (item_id, updated_at)",
    ),
    "a column made again as another type": (
        "drop column note, add column note int",
        'column "note" was replaced by another column of the same name, with type integer instead of character varying',
    ),
}


@pytest.mark.parametrize(("change", "expected"), REFUSED.values(), ids=REFUSED)
def test_lossy_change_is_rejected_and_a_reset_applies_it(replication, change, expected):
    make_items(replication)
    replication.on_source("alter table items add column day date default '2024-02-03'")
    replication.run_one("items")
    raw = replication.on_target("select * from raw.items order by 1")
    replication.on_source(f"alter table items {change}")

    error = failure_of(replication)
    kept = replication.on_target("select * from raw.items order by 1")
    finished = replication.command("reset", "items")

    assert expected in error
    assert "`etl reset items`" in error
    assert kept == raw
    assert finished.returncode == 0, finished.stderr
    assert_equal(replication)


def test_changes_invisible_in_raw_are_ignored(items):
    items.on_source(
        "alter table items alter column note set not null; alter table items alter column price set default 3; "
        "alter table items add check (amount > 0); create index on items (note)"
    )
    items.run_one("items")
    items.on_source("alter table items alter column note drop not null")
    items.run_one("items")

    assert changes_of(items) == []


def test_a_value_added_to_an_enum_arrives(replication):
    replication.on_source("create type mood as enum ('ok'); create table moods (mood_id int primary key, mood mood)")
    replication.run_one("moods")
    replication.on_source("alter type mood add value 'sad'")
    replication.on_source("insert into moods values (1, 'sad')")

    replication.run_one("moods")

    assert_equal(replication, "moods")


FROZEN = {
    "added": ("add column extra int", 'column "extra" added as integer'),
    "dropped": ("drop column note", 'column "note" dropped from the source'),
    "widened": ("alter column amount type bigint", 'column "amount" from integer to bigint'),
}


@pytest.mark.parametrize(("change", "expected"), FROZEN.values(), ids=FROZEN)
def test_frozen_table_rejects_every_change(items, change, expected):
    items.configure({"tables": {"items": {"on_schema_change": "freeze"}}})
    items.on_source(f"alter table items {change}")

    error = failure_of(items)
    items.configure({})
    items.run_one("items")

    assert expected in error
    assert "on_schema_change: freeze" in error
    assert len(changes_of(items)) == 1


def run_while(items, wait_until, statement):
    """Run a statement on the target after the run has looked at the raw tables, and before it writes to them."""
    items.on_source("update items set amount = 7, updated_at = now() where item_id = 3")
    with closing(psycopg2.connect(items.source_url)) as other, other.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("lock table items in access exclusive mode")
        run = pool.submit(items.run, "items")
        wait_until(lambda: items.on_source(WAITING_FOR_ITEMS)[0][0])
        items.on_target(statement)
        other.rollback()
        (result,) = run.result().tables
    (error,) = items.on_target("select error from etl.table_runs where table_name = 'items' order by run_id desc")[0]
    return result, error


def test_type_changed_by_the_raw_owner_during_a_run_is_safe(items, wait_until):
    """Binary forms of both types have four bytes, so the target would take one for the other."""
    result, error = run_while(items, wait_until, "alter table raw.items alter column amount type real")

    assert pick(result, "status", "retries") == ("succeeded", 1)
    assert items.on_target("select amount from raw.items where item_id = 3") == [(7.0,)]
    assert "raw.items was changed by another session during the run (amount)" in error


def test_column_dropped_by_the_raw_owner_during_a_run_returns(items, wait_until):
    result, error = run_while(items, wait_until, "alter table raw.items drop column note")

    assert pick(result, "status", "retries") == ("succeeded", 1)
    assert_equal(items)
    assert "raw.items was changed by another session during the run (note)" in error


def test_verify_says_to_run_after_a_change(items):
    items.on_source("alter table items add column extra int default 7")

    finished = items.command("verify")

    assert finished.returncode == 3
    assert 'column "extra" added as integer: run `etl run` first' in finished.stdout


# Views that cannot be put back


def test_materialized_view_blocks_the_change(items):
    items.on_target("create schema staging; create materialized view staging.kept as select amount from raw.items")
    items.on_source("alter table items alter column amount type bigint")

    error = failure_of(items)

    assert "staging.kept, a materialized view, reads it and cannot be recreated" in error
    assert raw_type(items, "amount") == "integer"


def test_view_with_a_trigger_blocks_the_change(items):
    items.on_target(
        "create schema staging; create view staging.v as select amount from raw.items;"
        "create function staging.f() returns trigger language plpgsql as 'begin return null; end';"
        "create trigger t instead of insert on staging.v for each row execute function staging.f()"
    )
    items.on_source("alter table items alter column amount type bigint")

    assert "staging.v, a view with triggers" in failure_of(items)


def test_function_reading_a_view_blocks_the_change(items):
    items.on_target(
        "create schema staging; create view staging.v as select amount from raw.items;"
        "create function staging.f() returns bigint language sql begin atomic; select sum(amount) from staging.v; end"
    )
    items.on_source("alter table items alter column amount type bigint")

    error = failure_of(items)

    assert "staging.f" in error or "depend" in error
    assert raw_type(items, "amount") == "integer"
    assert items.on_target("select count(*) from staging.v") == [(20,)]


def test_view_of_another_role_blocks_the_change_naming_the_grant(viewed):
    (database,) = viewed.on_target("select current_database()")[0]
    role = f"loader_{database}"
    viewed.on_target(f"create role {role} login password 'l'; grant create on database {database} to {role}")
    viewed.on_target(
        f"alter schema raw owner to {role}; alter schema etl owner to {role}; alter table raw.items owner to {role}"
    )
    for (name,) in viewed.on_target(
        "select relname from pg_class where relnamespace = 'etl'::regnamespace and relkind = 'r'"
    ):
        viewed.on_target(f"alter table etl.{name} owner to {role}")
    url = viewed.target_url.replace(viewed.target_url.split("//")[1].split("@")[0], f"{role}:l")
    viewed.on_source("alter table items alter column amount type bigint")

    refused = viewed.command("run", TARGET_DATABASE_URL=url)
    viewed.on_target(f"grant modeller to {role}")
    before = viewed.on_target(DESCRIBE_VIEWS)
    done = viewed.command("run", TARGET_DATABASE_URL=url)

    try:
        assert refused.returncode == 1
        assert (
            "staging.both, which reads it, belongs to modeller: run on the target: grant modeller to" in refused.stderr
        )
        assert done.returncode == 0, done.stderr
        assert viewed.on_target(DESCRIBE_VIEWS) == before
    finally:
        viewed.on_target(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}")


# Tables


def test_dropped_table_is_reported_once_and_its_rows_stay(items):
    items.on_source("create table notes (note_id int primary key)")
    items.run()
    items.on_source("drop table items")

    items.run()
    items.run()

    told = [
        event.message for event in items.events if event.kind == "notice" and "no table public.items" in event.message
    ]
    assert len(told) == 1
    assert items.on_target("select count(*) from raw.items") == [(20,)]
    assert [kind for kind, _, _ in changes_of(items)] == ["table_missing"]


def test_a_renamed_table_is_loaded_under_its_new_name(items):
    items.on_source("alter table items rename to goods")

    items.run()

    assert_equal_tables = (
        items.on_target("select count(*) from raw.goods"),
        items.on_target("select count(*) from raw.items"),
    )
    assert assert_equal_tables == ([(20,)], [(20,)])
    assert [kind for kind, _, _ in changes_of(items)] == ["table_missing"]
    assert [kind for kind, _, _ in changes_of(items, "goods")] == ["table_loaded"]


def test_a_new_table_is_found_and_recorded(items):
    items.on_source("create table notes (note_id int primary key); insert into notes values (1)")

    items.run()

    assert_equal(items, "notes")
    assert changes_of(items, "notes") == [("table_loaded", None, "loaded")]


# Reset


def test_reset_reloads_and_keeps_deleted_rows_as_tombstones(viewed):
    before = viewed.on_target(DESCRIBE_VIEWS)
    viewed.on_target("grant select on raw.items to public; comment on table raw.items is 'Items.'")
    viewed.on_source("delete from items where item_id = 1")
    viewed.run_one("items", options=None)
    viewed.on_target("update raw.items set note = 'by hand' where item_id = 5")
    viewed.on_source("delete from items where item_id in (2, 3)")

    finished = viewed.command("reset", "items")

    (run_id,) = viewed.on_target("select max(run_id) from etl.runs")[0]
    assert finished.returncode == 0, finished.stderr
    assert viewed.on_target(DESCRIBE_VIEWS) == before
    assert viewed.on_target("select distinct _etl_run_id from raw.items where _etl_deleted_at is null") == [(run_id,)]
    tombstones = viewed.on_target(
        "select item_id, _etl_run_id = %s from raw.items where _etl_deleted_at is not null order by 1", run_id
    )
    assert tombstones in ([(1, True), (2, True), (3, True)], [(1, False), (2, True), (3, True)])
    assert viewed.on_target("select note from raw.items where item_id = 5") == [("note",)]
    assert viewed.on_target("select has_table_privilege('analyst_of_items', 'raw.items', 'select')") == [(True,)]
    assert viewed.on_target("select obj_description('raw.items'::regclass)") == [("Items.",)]
    assert viewed.on_target("select count(*) from raw.items") == [(20,)]
    assert viewed.run_one("items").rows_inserted == 0


def test_readers_see_the_old_rows_until_the_new_ones_are_ready(items, monkeypatch):
    from etl.target.new_table import RawLoad

    items.on_target("update raw.items set note = 'old'")
    seen = []
    with closing(psycopg2.connect(items.target_url)) as reader, reader.cursor() as cursor:
        reader.autocommit = True
        carry = RawLoad._carry_tombstones

        def look(*arguments, **options):
            cursor.execute("select count(*), min(note), max(note) from raw.items")
            seen.append(cursor.fetchone())
            return carry(*arguments, **options)

        monkeypatch.setattr(RawLoad, "_carry_tombstones", look)
        items.run_one("items", options=RunOptions(full_refresh=True))
        cursor.execute("select count(*), min(note), max(note) from raw.items")
        seen.append(cursor.fetchone())

    assert seen == [(20, "old", "old"), (20, "note", "note")]


def test_a_reset_of_an_emptied_table_asks_for_confirmation(items):
    items.on_source("truncate items")

    refused = items.command("reset", "items")
    kept = items.on_target("select count(*) from raw.items where _etl_deleted_at is null")
    confirmed = items.command("reset", "--allow-deletes", "items")

    assert refused.returncode == 1
    assert "20 of 20 rows are missing from the source" in refused.stderr
    assert kept == [(20,)]
    assert confirmed.returncode == 0, confirmed.stderr
    assert items.on_target("select count(*) from raw.items where _etl_deleted_at is null") == [(0,)]


def test_interrupted_reset_keeps_the_old_rows_and_resumes(items, monkeypatch):
    from etl.target.new_table import RawLoad

    with monkeypatch.context() as patching:
        patching.setattr(RawLoad, "publish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            items.run_one("items", options=RunOptions(full_refresh=True))
    items.on_source("update items set note = 'silent' where item_id = 4")
    kept = items.on_target("select count(*) from raw.items")
    items.run_one("items")

    items.run_one("items", options=RunOptions(full_refresh=True))

    assert kept == [(20,)]
    assert_equal(items)
    assert items.on_target("select count(*) from pg_class where relname like '%loading%' and relkind = 'r'") == [(0,)]


def test_reset_with_a_rejected_row_keeps_the_table(items):
    """The new table has no constraint of the owner's; what no table can hold is set aside in the old one."""
    items.on_target("alter table raw.items add check (amount < 1000)")
    items.on_source("update items set amount = 2000 where item_id = 7")

    items.command("reset", "items")

    assert items.on_target("select amount from raw.items where item_id = 7") == [(2000,)]


def test_reset_that_would_lose_objects_is_rejected_before_load(items, scans_of_source):
    items.on_target(
        "create policy few on raw.items using (item_id < 5); alter table raw.items enable row level security"
    )
    with_policy = reset(items).error
    items.on_target("drop policy few on raw.items; alter table raw.items disable row level security")
    items.on_target("create view public.notes as select note from raw.items")
    items.on_source("alter table items drop column note")
    with_view = reset(items).error

    assert "reloading raw.items would lose row-level security" in with_policy
    assert 'would drop column "note", which the source no longer has, and notes reads it' in with_view.replace(
        "public.", ""
    )
    assert scans_of_source == []
    assert items.on_target("select count(*) from pg_class where relname like '_etl_loading_%%'") == [(0,)]


@pytest.fixture
def scans_of_source(monkeypatch):
    """What was copied from the source after the first load."""
    from etl.source.reader import Reader

    found = []
    monkeypatch.setattr(Reader, "copy", lambda *_: found.append(1))
    return found


def reset(replication, **options):
    (result,) = replication.run("items", options=RunOptions(full_refresh=True, **options)).tables
    return result


def test_reset_reports_added_objects_missing_in_the_new_table(items):
    items.on_target(
        "alter table raw.items add column mine int; create index by_note on raw.items (note);"
        "comment on column raw.items.mine is 'gone'; grant select (mine) on raw.items to public"
    )

    result = reset(items)

    told = [event.message for event in items.events if event.kind == "notice"]
    assert result.status == "succeeded", result.error
    assert any("without what was added to it: column mine, index raw.by_note" in text for text in told), told
    assert items.on_target(
        "select conname from pg_constraint where conrelid = 'raw.items'::regclass and contype = 'p'"
    ) == [("_etl_key_" + hashlib.sha256(b"items").hexdigest()[:32],)]


def test_default_privileges_are_not_granted_on_rebuilt_objects(viewed):
    viewed.on_target("alter default privileges in schema raw, staging grant select on tables to analyst_of_items")
    viewed.on_source("alter table items alter column amount type bigint")
    viewed.run_one("items")
    after_widening = viewed.on_target("select has_table_privilege('analyst_of_items', 'staging.both', 'select')")
    reset(viewed)
    after_reset = viewed.on_target("select has_table_privilege('analyst_of_items', 'raw.items', 'select')")
    viewed.on_target("alter default privileges in schema raw, staging revoke select on tables from analyst_of_items")

    assert after_widening == after_reset == [(False,)]


def test_reset_counts_rows_of_another_key_before_dropping_them(items):
    items.on_source("truncate items; alter table items drop constraint items_pkey, drop column item_id")
    items.on_source("alter table items add column code text primary key")

    refused = reset(items).error
    confirmed = reset(items, allow_deletes=True)

    assert "20 of 20 rows are missing from the source" in refused
    assert "`etl reset --allow-deletes items`" in refused
    assert confirmed.status == "succeeded", confirmed.error


def test_next_run_removes_leftovers_of_a_failed_reset(items):
    items.on_source("truncate items")
    reset(items)
    left = items.on_target("select count(*) from etl.loads")
    items.on_source("insert into items (item_id) select n from generate_series(1, 20) as n")
    items.run_one("items")

    assert left == [(1,)]
    assert items.on_target("select count(*) from pg_class where relname like '_etl_loading_%%'") == [(0,)]


def test_table_with_deletes_none_keeps_its_rows_after_a_reset(items):
    items.configure({"tables": {"items": {"deletes": "none"}}})
    items.on_source("delete from items where item_id < 4")

    reset(items)

    assert items.on_target("select count(*) from raw.items where _etl_deleted_at is null") == [(20,)]


def test_a_table_can_be_reset_before_it_was_loaded(replication):
    replication.on_source("create table notes (note_id int primary key); insert into notes values (1)")

    finished = replication.command("run", "--full-refresh")

    assert finished.returncode == 0, finished.stderr
    assert_equal(replication, "notes")


def test_reset_requires_table_names(items):
    assert items.command("reset").returncode == 2
