"""What a run brings to `raw`: rows, types, counts, and nothing else."""

import dataclasses

import pytest

import etl
from etl.model import RunOptions
from tests.results import pick, statuses


def set_batch_rows(replication, rows, **tables):
    replication.configure({"defaults": {"batch_rows": rows}, "tables": tables})


def test_a_first_run_copies_every_row_exactly(orders):
    result = orders.run_one("orders")

    source, raw = orders.rows("orders")
    assert pick(result, "rows_read", "rows_inserted") == (1000, 1000)
    assert source == raw


def test_a_raw_table_has_plain_types_the_key_and_our_columns(orders):
    orders.run_one("orders")

    columns = orders.on_target(
        "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute "
        "where attrelid = 'raw.orders'::regclass and attnum > 0 order by attnum"
    )
    indexes = orders.on_target("select indexdef from pg_indexes where tablename = 'orders' order by 1")
    assert columns == [
        ("order_id", "bigint", True),
        ("status", "text", False),
        ("total", "numeric(12,2)", False),
        ("attributes", "jsonb", False),
        ("note", "text", False),
        ("updated_at", "timestamp with time zone", False),
        ("_etl_run_id", "bigint", False),
        ("_etl_synced_at", "timestamp with time zone", False),
        ("_etl_deleted_at", "timestamp with time zone", False),
    ]
    assert [index.partition(" USING ")[2] for (index,) in indexes] == [
        "btree (_etl_run_id) WHERE (_etl_run_id > 1)",
        "btree (order_id)",
    ]


def test_rows_of_later_runs_are_found_by_an_index(orders):
    first = orders.run_one("orders")
    run_id = orders.on_target("select max(run_id) from etl.runs")[0][0]
    assert first.rows_inserted > 0

    plan = orders.on_target(f"set enable_seqscan = off; explain select * from raw.orders where _etl_run_id > {run_id}")

    assert "Index Scan using _etl_run_" in plan[0][0]


def test_second_run_reads_and_writes_only_the_increment(orders):
    orders.run_one("orders")
    orders.on_source("update orders set total = total + 1, updated_at = clock_timestamp() where order_id <= 10")
    orders.on_source("insert into orders (total) values (5)")
    before = orders.on_target("select count(*) from raw.orders where _etl_run_id = 1")

    second = orders.run_one("orders")
    third = orders.run_one("orders")

    assert before == [(1000,)]
    assert pick(second, "rows_inserted", "rows_updated") == (1, 10)
    assert second.rows_read < 1000
    assert pick(third, "rows_inserted", "rows_updated") == (0, 0)
    assert orders.on_target("select count(*) from raw.orders where _etl_run_id = 1") == [(990,)]


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 1000, 1001])
def test_batches_of_any_size_bring_the_same_rows(orders, batch_rows):
    """1,000 rows share one updated_at: the order of a batch has to go on inside equal watermarks."""
    set_batch_rows(orders, batch_rows)
    orders.run_one("orders")
    orders.on_source("update orders set total = total + 1, updated_at = clock_timestamp() where order_id <= 60")
    orders.on_source("update orders set note = 'x', updated_at = now() where order_id > 940")

    result = orders.run_one("orders")

    source, raw = orders.rows("orders")
    assert result.rows_updated == 120
    assert source == raw


def test_keys_sorting_differently_as_text_keep_batches_whole(replication):
    """The last row of a batch is found by number, not by the text of its key: 9 comes before 10."""
    replication.on_source("create table points (a int, b text, c numeric, primary key (c, b, a))")
    replication.on_source("insert into points select n, 'k' || n % 3, n / 4.0 from generate_series(1, 500) as n")
    set_batch_rows(replication, 9)
    replication.run_one("points")
    replication.on_source("update points set a = a + 1000 where a % 2 = 0")

    replication.run_one("points")

    (source, raw) = replication.rows("points")
    assert set(source) <= set(raw)


def test_table_without_watermark_is_read_by_row_versions(replication):
    replication.on_source("create table rates (code text primary key, rate numeric)")
    replication.on_source("insert into rates values ('EUR', 1.0), ('USD', 2)")
    replication.run_one("rates")
    replication.on_source("update rates set rate = 1.00 where code = 'EUR'")

    result = replication.run_one("rates")

    source, raw = replication.rows("rates")
    assert pick(result, "rows_read", "rows_updated") == (1, 1)
    assert source == raw
    assert "it is read by its row versions (watermark: xmin)" in replication.events[0].message


def test_rows_whose_watermark_is_null_are_read_every_time(replication):
    replication.on_source("create table notes (note_id int primary key, note text, updated_at timestamptz)")
    replication.on_source("insert into notes values (1, 'a', now()), (2, 'b', null), (3, 'c', null)")
    set_batch_rows(replication, 2)
    replication.run_one("notes")
    replication.on_source("update notes set note = 'changed' where note_id = 2")
    replication.on_source("insert into notes values (4, 'new', null)")

    result = replication.run_one("notes")

    source, raw = replication.rows("notes")
    assert pick(result, "rows_inserted", "rows_updated") == (1, 1)
    assert source == raw


def test_values_differing_only_in_form_are_distinguished(replication):
    replication.on_source(
        "create table forms (form_id int primary key, n numeric, d float8, i interval, j json, p point, b box)"
    )
    replication.on_source("insert into forms values (1, 1.0, 0, '1 mon', '{\"a\":1}', '(1,2)', '((0,0),(2,2))')")
    replication.run_one("forms")
    replication.on_source(
        "update forms set n = 1.00, d = '-0', i = '30 days', j = '{\"a\": 1}', p = '(1,3)', b = '((0,0),(1,4))'"
    )

    result = replication.run_one("forms")

    source, raw = replication.rows("forms")
    assert result.rows_updated == 1
    assert source == raw


def test_names_that_need_quotes_work(replication):
    name = 'Select "from" ' + "é" * 20
    replication.on_source(
        f'create table "{name.replace(chr(34), chr(34) * 2)}" ("Order" int primary key, "a b%s" text)'
    )
    replication.on_source(f"insert into \"{name.replace(chr(34), chr(34) * 2)}\" values (1, 'x')")

    result = replication.run()

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert result.tables[0].rows_inserted == 1


def test_a_column_dropped_on_the_source_stays_in_raw(orders):
    orders.run_one("orders")
    orders.on_source("alter table orders drop column note")
    orders.on_source("insert into orders (total) values (1)")

    orders.run_one("orders")

    assert orders.on_target("select count(*), count(note) from raw.orders") == [(1001, 1000)]


def test_failed_table_does_not_affect_others(orders):
    orders.on_source("create table notes (note_id int primary key)")
    orders.on_source("insert into notes values (1)")
    orders.run()
    orders.on_source("insert into notes values (2)")
    orders.on_target("alter table raw.orders drop column _etl_synced_at")

    result = orders.run()

    assert statuses(result) == {"notes": "succeeded", "orders": "failed"}, result
    assert orders.on_target("select count(*) from raw.notes") == [(2,)]
    assert orders.on_target("select status, error from etl.runs where run_id = 2") == [("failed", "failed: orders")]


def test_the_ledger_counts_what_was_done(orders):
    orders.run_one("orders")
    orders.on_source("update orders set note = 'x', updated_at = clock_timestamp() where order_id <= 3")
    orders.run_one("orders")

    ledger = orders.on_target(
        "select run_id, status, batches, rows_read, rows_inserted, rows_updated, rows_unchanged, ended_at is not null, "
        "bytes_read > 0 from etl.table_runs order by run_id"
    )
    (second,) = ledger[1:]
    assert ledger[0] == (1, "succeeded", 1, 1000, 1000, 0, 0, True, True)
    assert second[5] == 3
    assert second[3] == second[4] + second[5] + second[6]


def test_all_tables_share_one_snapshot(orders):
    """A row in each of two tables, written in one transaction while a run is under way, arrives in both or neither."""
    orders.on_source("create table notes (note_id int primary key)")
    seen = []

    def write_after_the_first_table(event):
        if event.kind == "table_finished" and not seen:
            seen.append(event.table_name)
            orders.on_source("begin; insert into notes values (1); insert into orders (total) values (1); commit")

    one_by_one = dataclasses.replace(orders.settings, parallel_tables=1)  # the second table is opened after the write
    etl.run(one_by_one, observe=write_after_the_first_table)

    assert len(seen) == 1
    assert orders.on_target("select (select count(*) from raw.notes), (select count(*) from raw.orders)") == [(0, 1000)]


def test_a_table_truncated_after_the_snapshot_is_read_again(orders, monkeypatch):
    """TRUNCATE is not MVCC-safe: at the older snapshot the table would look empty."""
    from etl.source.session import Source

    orders.run_one("orders")
    export = Source.export_snapshot
    truncated = []

    def export_and_truncate(self, names):
        snapshot = export(self, names)
        if not truncated:
            truncated.append(True)
            orders.on_source("truncate orders; insert into orders (total, note) values (1, 'after')")
        return snapshot

    monkeypatch.setattr(Source, "export_snapshot", export_and_truncate)

    result = orders.run_one("orders", options=RunOptions(allow_deletes=True))

    assert result.retries == 1
    assert orders.on_target("select count(*) from raw.orders where note = 'after'") == [(1,)]


def test_verify_finds_a_change_that_kept_the_watermark(orders):
    orders.run_one("orders")
    equal = orders.command("verify")
    orders.on_source("update orders set note = 'silent' where order_id = 1")

    different = orders.command("verify")

    assert equal.returncode == 0, equal.stderr
    assert different.returncode == 1
    assert "different" in different.stdout


def test_status_names_the_session_that_holds_a_watermark_back(orders):
    orders.run_one("orders")
    writer = orders.open_source()
    with writer.cursor() as cursor:
        cursor.execute("set application_name = 'month end'")
        cursor.execute("insert into orders (total) values (1)")
    orders.run_one("orders")

    found = orders.command("status")

    assert found.returncode == 0, found.stderr
    assert f"pid {writer.info.backend_pid} month end" in found.stdout
    writer.close()


@pytest.mark.parametrize(
    ("first", "second"), [("updated_at", "order_id"), ("order_id", "updated_at"), (None, "order_id")]
)
def test_table_is_reloaded_when_its_watermark_column_changes(orders, first, second):
    orders.configure({"tables": {"orders": {"watermark": first}}})
    orders.run_one("orders")
    orders.configure({"tables": {"orders": {"watermark": second}}})
    orders.on_source("update orders set note = 'silent' where order_id = 3")

    result = orders.run_one("orders")

    source, raw = orders.rows("orders")
    assert result.rows_read == 1000
    assert source == raw
