"""Tables with descendants by inheritance: each row is in one raw table, or the table is refused."""

import pytest

import etl
from etl.model import RunOptions

LOG = """
    create table log (log_id int primary key, note text, updated_at timestamptz default clock_timestamp());
    create index on log (updated_at);
    create schema chunks;
    create table log_old (source text default 'x') inherits (log);
    create table chunks.log_new (check (log_id >= 100)) inherits (log);
    create table chunks.log_newest () inherits (chunks.log_new);
    insert into log values (1, 'own');
    insert into log_old select n, 'old' from generate_series(10, 19) as n;
    insert into chunks.log_new select n, 'new' from generate_series(100, 400) as n;
    insert into chunks.log_newest values (900, 'newest')
"""
IN_RAW = "select log_id, note from raw.log where _etl_deleted_at is null order by 1"
ON_SOURCE = "select log_id, note from log order by 1"


def assert_equal(replication):
    assert replication.on_target(IN_RAW) == replication.on_source(ON_SOURCE)
    (verdict,) = etl.verify(replication.settings, ["log"])
    assert verdict.is_equal, verdict
    assert not verdict.pending


@pytest.fixture(params=["updated_at", "xmin"])
def log(replication, request):
    replication.on_source(LOG)
    replication.configure({"defaults": {"watermark": request.param, "deletes": "reconcile"}})
    return replication


def test_rows_of_descendants_without_keys_are_read_with_it(log):
    result = log.run()
    assert len(log.on_target(IN_RAW)) == 313
    log.on_source("insert into chunks.log_newest values (901, 'later'); insert into log values (2, 'own')")
    log.on_source("update log_old set note = 'changed', updated_at = clock_timestamp() where log_id = 12")
    log.on_source("delete from chunks.log_new where log_id < 110; delete from only log")
    log.run(options=RunOptions(reconcile=True))

    assert [table.table_name for table in result.tables] == ["log"]
    assert [event.message for event in log.events if "log_old" in event.message] == []
    assert_equal(log)


def test_first_load_in_ranges_reads_the_descendants(log):
    log.run(load_range_blocks=1)

    assert_equal(log)


def test_emptied_descendant_leaves_only_deleted_rows(log):
    log.run()
    log.on_source("truncate chunks.log_new")
    log.command("run", "--allow-deletes")

    assert_equal(log)


def test_table_that_is_made_a_descendant_later_is_read(log):
    log.on_source("create table log_late (like log); insert into log_late values (5, 'before all', '2001-01-01')")
    log.run()
    log.on_source("alter table log_late inherit log")
    log.run()

    assert (5, "before all") in log.on_target(IN_RAW)
    assert_equal(log)


def test_first_descendant_of_a_replicated_table_is_read(replication):
    replication.on_source("create table log (log_id int primary key, note text); insert into log values (1, 'own')")
    replication.run()
    replication.on_source("create table log_new () inherits (log); insert into log_new values (2, 'new')")
    replication.run()

    assert_equal(replication)


def test_key_that_two_descendants_share_fails_the_table(log):
    log.on_source("insert into log_old values (1, 'twice')")

    result = log.run()

    assert result.has_failures
    assert "duplicate" in result.tables[0].error, result.tables[0].error


def test_descendants_with_keys_are_tables_of_their_own(replication):
    replication.on_source(
        """
        create table places (id int primary key, name text);
        create table cities (mayor text, primary key (id)) inherits (places);
        insert into places values (1, 'sea'), (2, 'wood');
        insert into cities values (1, 'Rome', 'R'), (3, 'Oslo', 'O')
        """
    )
    replication.run()
    replication.on_source("update places set name = name || '!'")

    result = replication.run()

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert replication.on_target("select id, name from raw.places order by id") == [(1, "sea!"), (2, "wood!")]
    assert replication.on_target("select id, name, mayor from raw.cities order by id") == [
        (1, "Rome!", "R"),
        (3, "Oslo!", "O"),
    ]


def test_descendants_that_are_left_out_are_named(replication):
    replication.on_source("create table places (id int primary key); create table cities (id int primary key)")
    replication.on_source("alter table cities inherit places; insert into cities values (1)")
    replication.configure({"tables": {"cities": {"skip": True}}})
    replication.run()

    (notice,) = [event.message for event in replication.events if "inherit" in event.message]
    assert notice == (
        "public.places lacks the rows of cities, which inherit from it and are tables of their own: tables.yml leaves "
        "these out"
    )


def test_table_whose_descendants_are_of_both_kinds_is_refused(log):
    log.run()
    log.on_source("alter table log_old add primary key (log_id)")

    result = {table.table_name: table for table in log.run().tables}

    assert result["log_old"].error is None
    assert (
        "others that cannot be, whose rows would be missing: chunks.log_new, chunks.log_newest" in result["log"].error
    )


def test_discover_says_where_the_rows_of_descendants_go(log):
    log.on_source("create table places (id int primary key); create table cities (primary key (id)) inherits (places)")
    log.on_source("create table towns () inherits (places)")

    told = log.command("discover").stdout

    assert "its rows are read with public.log, from which it inherits" in told
    assert "some of its descendants are tables of their own, and others cannot be: public.towns" in told


def test_key_that_is_taken_twice_later_is_found_by_verify(log):
    log.run()
    log.on_source("insert into log_old values (1, 'twice')")
    log.run()

    (verdict,) = etl.verify(log.settings)

    assert "have several rows with the key log_id = 1, and raw can hold one" in verdict.error
