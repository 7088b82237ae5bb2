"""Names of Tidemark's own tables, indexes and constraints cannot clash with those of a source's tables."""

import hashlib

import pytest

import etl
from etl.model import RunOptions
from etl.postgres.sql import quote_name

LONGEST = "a_table_with_a_name_as_long_as_postgres_allows_which_is_63_byte"
ATTACHED = """
    select c.conname, i.relname from pg_constraint as c join pg_class as i on i.oid = c.conindid
    where c.conrelid = %s::regclass and c.contype = 'p'
"""


def hashed(name):
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def make_table(replication, name, rows=3):
    """Make a table whose own indexes have names that leave all others free."""
    table, key = quote_name(name), f"k{hashed(name)}"
    replication.on_source(f"create table {table} (id int, updated_at timestamptz default now())")
    replication.on_source(f"alter table {table} add constraint {key} primary key (id)")
    replication.on_source(f"insert into {table} select n from generate_series(1, %s) as n", rows)


def assert_replicated(replication, result, *names):
    assert [(one.table_name, one.status, one.error) for one in result.tables] == [
        (name, "succeeded", None) for name in sorted(names)
    ]
    for name in names:
        of_source, of_raw = replication.rows(name)
        assert of_source == of_raw
        assert of_source


def reset(replication, *names):
    return replication.run(*names, options=RunOptions(full_refresh=True), load_range_blocks=1)


NAMES_OF_INDEXES = {
    **{name: name for name in ("orders_pkey", "orders__etl_run_id_idx", "_orders", "orders_id_not_null")},
    **{f"{prefix}<hash>": prefix + hashed("orders") for prefix in ("_etl_key_", "_etl_run_")},
}


@pytest.mark.parametrize("other", NAMES_OF_INDEXES.values(), ids=NAMES_OF_INDEXES)
def test_table_named_like_an_index_of_another_is_loaded(replication, other):
    """An index of ours makes room for it, whichever of them comes first."""
    make_table(replication, "orders")
    replication.run_one("orders")
    make_table(replication, other)

    assert_replicated(replication, replication.run(), "orders", other)
    assert_replicated(replication, reset(replication), "orders", other)
    assert_replicated(replication, reset(replication, "orders"), "orders")


def test_reset_spares_a_table_named_like_a_loading_table(replication):
    other = f"_etl_loading_{hashed('orders')}"
    make_table(replication, "orders", 2_000)
    make_table(replication, other)
    assert_replicated(replication, replication.run(), "orders", other)
    before = replication.on_target("select oid from pg_class where relname = %s", other)

    assert_replicated(replication, reset(replication, "orders"), "orders")

    assert replication.on_target("select oid from pg_class where relname = %s", other) == before
    assert_replicated(replication, replication.run(), "orders", other)


def test_long_names_that_differ_only_at_their_ends_are_loaded(replication):
    names = [LONGEST, LONGEST[:-1] + "5", LONGEST[:58], LONGEST[:58] + "_pkey", LONGEST[:57], LONGEST[:57] + "_pkey"]
    assert {len(name) for name in names} == {57, 58, 62, 63}
    for name in names:
        make_table(replication, name)

    assert_replicated(replication, replication.run(), *names)
    assert_replicated(replication, reset(replication), *names)


def test_keys_and_indexes_have_names_of_their_own(replication):
    make_table(replication, "orders")
    replication.run()
    loaded = replication.on_target(ATTACHED, "raw.orders")
    reset(replication)

    assert loaded == [(f"_etl_key_{hashed('orders')}",) * 2]
    assert replication.on_target(ATTACHED, "raw.orders") == loaded
    assert replication.on_target("select count(*) from pg_indexes where schemaname = 'raw'") == [(2,)]


def test_indexes_of_older_releases_make_room(replication):
    make_table(replication, "orders")
    replication.run()
    replication.on_target(f"alter index raw._etl_key_{hashed('orders')} rename to orders_pkey")
    replication.on_target(f"alter index raw._etl_run_{hashed('orders')} rename to orders__etl_run_id_idx")
    make_table(replication, "orders_pkey")
    make_table(replication, "orders__etl_run_id_idx")

    assert_replicated(replication, replication.run(), "orders", "orders_pkey", "orders__etl_run_id_idx")
    assert replication.on_target(ATTACHED, "raw.orders") == [(f"_etl_key_{hashed('orders')}",) * 2]


def test_index_of_the_owner_stays_and_is_named(replication):
    make_table(replication, "orders")
    replication.run()
    replication.on_target("create index by_time on raw.orders (updated_at)")
    make_table(replication, "by_time")

    (refused,) = replication.run("by_time").tables
    statement = refused.error[refused.error.index("alter index") :].rstrip()
    replication.on_target(statement.replace("...", "orders_by_time"))

    assert "raw.by_time cannot be created, because an index of raw.orders has its name" in refused.error
    assert_replicated(replication, replication.run(), "by_time", "orders")


def test_first_load_gets_the_default_privileges_of_raw(replication):
    """A table in the making is elsewhere; readers of schema raw get their grants all the same."""
    make_table(replication, "orders", 2_000)
    replication.run("orders", load_range_blocks=1)
    replication.on_target(
        "alter default privileges in schema raw grant select on tables to pg_monitor;"
        "alter default privileges in schema etl grant insert on tables to pg_monitor"
    )
    replication.on_target("drop table raw.orders")
    replication.run_one("orders", load_range_blocks=1)

    assert replication.on_target(
        "select has_table_privilege('pg_monitor', 'raw.orders', 'select'),"
        " has_table_privilege('pg_monitor', 'raw.orders', 'insert')"
    ) == [(True, False)]
    assert_replicated(replication, replication.run(), "orders")


def test_old_load_in_raw_is_continued_in_its_new_place(replication, break_load):
    """Older releases had tables in the making in schema raw."""
    name = f"_etl_loading_{hashed('orders')}"
    make_table(replication, "orders", 2_000)
    break_load(replication, "orders")
    begun = replication.on_target(f"select 'etl.{name}'::regclass::oid, count(*) > 0 from etl.{name}")
    replication.on_target(f"alter table etl.{name} set schema raw")

    assert_replicated(replication, replication.run(load_range_blocks=1), "orders")

    assert begun == [(replication.on_target("select 'raw.orders'::regclass::oid")[0][0], True)]
    assert replication.on_target("select relname from pg_class where relname like '%%loading%%'") == []


def test_replicated_table_is_not_taken_for_an_old_load(replication, break_load):
    name = f"_etl_loading_{hashed('orders')}"
    make_table(replication, name)
    replication.run_one(name)
    make_table(replication, "orders", 2_000)
    break_load(replication, "orders")
    replication.on_target(f"drop table etl.{name}")

    assert_replicated(replication, replication.run(load_range_blocks=1), "orders", name)


@pytest.fixture
def break_load():
    """A function that runs a first load, which stops after its second range."""

    def break_off(replication, table_name):
        batches = []

        def stop(event):
            batches.extend([event] if event.kind == "batch_committed" else [])
            if len(batches) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            etl.run(replication.settings_with(load_range_blocks=1), [table_name], observe=stop)
        assert replication.on_target("select table_name from etl.loads") == [(table_name,)]

    return break_off
