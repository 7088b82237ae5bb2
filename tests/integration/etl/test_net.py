"""The net under a watermark: changes that the watermark column does not show arrive, and what makes a run look."""

import json
import os
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2 import sql

import etl
from deploy.local.servers import Server
from etl.policy import net
from tests.integration.etl.clusters import open_program
from tests.integration.etl.faults import create_database
from tests.results import pick

HOURS = 24.0


@pytest.fixture
def shop(orders):
    """Orders that were replicated and that nobody changes: nothing is read of them, and their counts are explained."""
    orders.configure({"defaults": {"deletes": "none", "reconcile_every_hours": HOURS}})
    orders.run_one("orders")
    flush(orders)
    orders.run_one("orders")
    orders.events.clear()
    return orders


def flush(replication):
    """Have the statistics of this session counted."""
    replication.on_source("select pg_stat_force_next_flush()")
    replication.on_source("select")


def change_silently(replication, where="order_id = 7"):
    """Change rows, but not their watermark."""
    replication.on_source(f"update orders set note = note || '!' where {where}")
    flush(replication)


def let_hours_pass(replication, hours):
    """Make all scans and comparisons this many hours older."""
    past = f"interval '{hours} hours'"
    replication.on_target(f"update etl.net_scans set scanned_at = scanned_at - {past}")
    replication.on_target(f"update etl.reconciliations set listed_at = listed_at - {past}")


def notices(replication):
    return [event.message for event in replication.events if event.kind == "notice"]


def is_equal(replication, table_name="orders"):
    source, raw = replication.rows(table_name)
    return source == raw


def test_silent_update_arrives_when_counters_move(shop):
    change_silently(shop)

    result = shop.run_one("orders")

    assert is_equal(shop)
    assert (result.rows_read, result.rows_updated) == (1, 1)
    assert any("1 rows had changed without a change of column" in message for message in notices(shop))
    assert shop.on_target("select rows_found from etl.net_scans where table_name = 'orders'") == [(1,)]
    assert shop.run_one("orders").rows_read == 0


def test_counters_that_reads_explain_cause_no_scan(shop):
    before = shop.on_target("select scan_xid from etl.net_scans")
    shop.on_source("update orders set updated_at = now() where order_id < 10")
    flush(shop)

    assert shop.run_one("orders").rows_read == 9
    assert shop.on_target("select scan_xid from etl.net_scans") == before


def test_silent_update_amid_others_arrives_by_schedule(shop):
    shop.on_source("update orders set updated_at = now() where order_id = 1")
    change_silently(shop)
    shop.run_one("orders")
    assert not is_equal(shop)

    let_hours_pass(shop, HOURS)
    shop.run_one("orders")

    assert is_equal(shop)


@pytest.mark.parametrize(
    "lie",
    [
        "insert into orders (total, updated_at) values (1, '2001-01-01')",
        "insert into orders (order_id, total, updated_at) overriding system value values (-1, 1, '-infinity')",
        "with gone as (delete from orders where order_id = 9 returning *)"
        " insert into orders overriding system value select order_id, status, total, '{}', 'new', updated_at from gone",
        "begin; savepoint a; update orders set note = 'a' where order_id = 3; savepoint b;"
        " update orders set note = 'b' where order_id = 4; release b; release a;"
        " update orders set note = 'c' where order_id = 5; commit",
    ],
    ids=["old stamp", "before all stamps", "deleted and reinserted with its stamp", "in subtransactions"],
)
def test_lying_stamps_are_found_by_the_schedule(shop, lie):
    shop.on_source(lie)
    let_hours_pass(shop, HOURS)

    shop.run_one("orders")

    assert is_equal(shop)


def test_silent_update_during_the_last_scan_is_found_by_the_next(shop):
    """A transaction that was open at a scan commits after it: its rows are not older than the scan's mark."""
    late = shop.open_source()
    late.cursor().execute("savepoint a; update orders set note = 'late' where order_id = 3; release a")
    let_hours_pass(shop, HOURS)
    shop.run_one("orders")
    late.commit()
    late.close()

    let_hours_pass(shop, HOURS)
    shop.run_one("orders")

    assert is_equal(shop)


@pytest.mark.parametrize("seconds", [-60, 60])
def test_clock_that_moved_causes_a_scan(shop, seconds):
    shop.on_target("update etl.watermarks set clock_ahead = clock_ahead + %s", seconds)
    shop.on_source("update orders set updated_at = now() where order_id = 1")
    change_silently(shop)

    shop.run_one("orders")

    assert is_equal(shop)
    assert any("the source's clock has moved" in message for message in notices(shop))


def test_reset_counters_cause_a_scan(shop):
    change_silently(shop)
    shop.on_source("select pg_stat_reset()")

    shop.run_one("orders")

    assert is_equal(shop)


def test_track_counts_off_means_a_scan_with_each_run(shop):
    name = sql.Identifier(shop.source.info.dbname).as_string(shop.source)
    shop.on_source(f"alter database {name} set track_counts = off")
    shop.on_source("set track_counts = off")
    for number in (7, 8):
        change_silently(shop, f"order_id = {number}")
        shop.run_one("orders")
        assert is_equal(shop)


def test_marks_too_old_to_tell_mean_a_comparison_of_all_columns(shop):
    change_silently(shop)
    shop.on_target(f"update etl.net_scans set scan_xid = scan_xid::numeric - {net.MAX_XID_DISTANCE}")

    shop.run_one("orders")

    assert is_equal(shop)
    assert any("more transactions have passed" in message for message in notices(shop))


def test_renamed_enum_label_means_a_comparison_of_all_columns(shop):
    shop.on_source("alter type order_status rename value 'placed' to 'received'")

    shop.run_one("orders")

    assert shop.on_target("select distinct status from raw.orders") == [("received",)]


def test_enum_label_below_arrays_domains_and_ranges_counts(orders):
    orders.on_source("create type kind as enum ('a', 'b')")
    orders.on_source("create domain kinds as kind[]; create type span as range (subtype = kind)")
    orders.on_source("create type pair as (one kind, other int)")
    orders.on_source(
        "create table goods (id int primary key, kinds kinds, span span, pair pair, "
        "updated_at timestamptz default now())"
    )
    orders.on_source("insert into goods values (1, '{a,b}', '[a,b]', '(a,1)')")
    orders.configure({"defaults": {"deletes": "none"}})
    orders.run_one("goods")
    orders.on_source("alter type kind rename value 'a' to 'c'")

    orders.run_one("goods")

    found = orders.on_target("select kinds::text, span::text, pair::text from raw.goods")
    assert found == [("{c,b}", "[c,b]", "(c,1)")]


def test_snapshot_expiring_amid_a_scan_goes_on_in_the_next_run(shop, monkeypatch):
    monkeypatch.setattr("etl.replicate.net.SLICE_BLOCKS", 2)
    change_silently(shop, "true")
    shop.run("orders", max_snapshot_seconds=0)
    (scanned,) = shop.on_target("select count(*), count(distinct scan_xid) from etl.net_scans")
    assert scanned == (2, 2), "one part is scanned, the rest keeps its mark"

    shop.run_one("orders")

    assert is_equal(shop)


def test_schedule_scans_a_large_table_in_even_steps(shop, monkeypatch):
    monkeypatch.setattr("etl.replicate.net.SLICE_BLOCKS", 2)
    monkeypatch.setattr("etl.policy.net.SLICE_BLOCKS", 2)
    shop.on_source("analyze orders")
    ((blocks,),) = shop.on_source("select relpages from pg_class where relname = 'orders'")
    steps = -(-blocks // 2)
    assert steps > 3
    change_silently(shop, "order_id % 50 = 0")
    shop.on_target("update etl.watermarks set changes_counted = null")  # only the schedule finds it
    for _ in range(steps + 1):
        let_hours_pass(shop, HOURS / steps)
        shop.run_one("orders")

    assert is_equal(shop)
    ((runs, last),) = shop.on_target("select count(distinct run_id), max(run_id) from etl.net_scans")
    assert runs > steps / 2, "each run scans some blocks, and none scans all"
    assert last == steps + 3


def test_a_long_transaction_does_not_make_runs_send_rows_again(shop):
    reader = shop.open_source()
    reader.cursor().execute("select count(*) from orders")
    shop.on_source("update orders set updated_at = now() where order_id <= 100")
    assert shop.run_one("orders").rows_read == 100

    again = shop.run_one("orders")
    reader.close()

    assert again.rows_read == 0
    assert shop.on_target("select jsonb_array_length(points) > 1 from etl.watermarks") == [(True,)]


def test_transaction_open_since_the_first_load_repeats_no_read(orders):
    reader = orders.open_source()
    reader.cursor().execute("select count(*) from orders")
    orders.run_one("orders")
    assert orders.on_target("select watermark from etl.watermarks") == [(None,)]
    change_silently(orders)

    result = orders.run_one("orders")
    reader.close()

    assert result.rows_read == 1
    assert is_equal(orders)


def test_verify_counts_only_new_versions_as_pending(shop):
    """A row that a run has read is not read again, so a fault in raw does not mend itself."""
    shop.on_source("update orders set updated_at = '2999-01-01' where order_id <= 2")
    shop.run_one("orders")
    shop.on_target("update raw.orders set note = 'damaged' where order_id = 1")
    shop.on_source("update orders set note = 'new' where order_id = 2")

    (verdict,) = etl.verify(shop.settings, ["orders"])

    assert pick(verdict, "changed", "pending") == (1, 1)


def test_stamps_in_the_future_are_sent_once(shop):
    shop.on_source("update orders set updated_at = '2999-01-01' where order_id <= 10")
    assert shop.run_one("orders").rows_read == 10
    assert shop.run_one("orders").rows_read == 0


def test_table_without_a_watermark_sends_only_new_versions(orders):
    orders.configure({"defaults": {"watermark": None}})
    assert orders.run_one("orders").rows_read == 1000
    orders.on_source("update orders set note = 'new' where order_id <= 3")
    orders.on_source("delete from orders where order_id = 9")
    flush(orders)

    changed = orders.run_one("orders")

    assert (changed.rows_read, changed.rows_updated, changed.rows_deleted) == (3, 3, 1)
    assert orders.run_one("orders").rows_read == 0


def test_rewritten_table_without_a_watermark_is_read_whole(orders):
    orders.configure({"defaults": {"watermark": None, "deletes": "none"}})
    orders.run_one("orders")
    orders.on_source("alter table orders alter column note type text using note || '!'")

    orders.run_one("orders")

    assert is_equal(orders)


@pytest.mark.parametrize("watermark", ["updated_at", None])
def test_partition_attached_with_old_rows_arrives(replication, watermark):
    """Its row versions are older than the last scan, and its stamps older than the watermark."""
    replication.on_source(
        "create table days (day int, note text, updated_at timestamptz default now(), primary key (day))"
        " partition by range (day); create table days_1 partition of days for values from (1) to (10);"
        " create table days_2 (like days including all);"
        " insert into days_2 values (15, 'old', '2001-01-01')"
    )
    replication.configure({"defaults": {"watermark": watermark, "deletes": "none"}})
    replication.on_source("insert into days values (1, 'first', now())")
    replication.run_one("days")
    replication.on_source("alter table days attach partition days_2 for values from (10) to (20)")

    replication.run_one("days")

    assert is_equal(replication, "days")


@pytest.mark.parametrize("rewrite", ["vacuum full orders", "cluster orders using orders_pkey"])
def test_table_rewritten_after_a_silent_change_is_compared(shop, rewrite):
    change_silently(shop)
    shop.on_source(rewrite)

    shop.run_one("orders")

    assert is_equal(shop)


@pytest.fixture
def numbered(replication):
    """A table whose watermark is its number, with ten rows that were replicated."""
    replication.on_source("create table events (id bigint generated by default as identity primary key, note text)")
    replication.on_source("insert into events (note) select 'first' from generate_series(1, 10)")
    replication.configure({"defaults": {"watermark": "id", "deletes": "none"}})
    replication.run_one("events")
    return replication


def test_number_that_the_sequence_has_not_reached_holds_nothing_up(numbered):
    numbered.on_source("insert into events (id, note) values (1000, 'ahead')")
    numbered.run_one("events")
    numbered.run_one("events")
    numbered.on_source("insert into events (note) select 'next' from generate_series(1, 3)")

    result = numbered.run_one("events")

    assert result.rows_read == 3
    assert is_equal(numbered, "events")


def test_default_of_another_sequence_decides(numbered):
    """The column owns a sequence that is far ahead, and takes its numbers from another."""
    numbered.on_source(
        "create sequence other; create table parts (id serial primary key, note text);"
        " select setval('parts_id_seq', 1000); alter table parts alter column id set default nextval('other');"
        " insert into parts values (500, 'ahead'); insert into parts (note) values ('a'), ('b')"
    )
    numbered.run_one("parts")
    numbered.run_one("parts")
    numbered.on_source("insert into parts (note) values ('c')")

    assert numbered.run_one("parts").rows_read == 1
    assert is_equal(numbered, "parts")


def test_restarted_sequence_is_refused_even_below_larger_numbers(numbered):
    numbered.on_source("insert into events (id, note) values (1000, 'ahead')")
    numbered.on_source("alter sequence events_id_seq restart")

    (result,) = numbered.run("events").tables

    assert result.status == "failed"
    assert "its sequence is at 0: if it was restarted" in result.error


def test_rows_written_while_the_sequence_was_refused_arrive(numbered):
    """Once it has passed the watermark, nothing shows any more that it was restarted."""
    numbered.on_source("delete from events where id <= 3; alter sequence events_id_seq restart")
    numbered.on_source("insert into events (note) select 'again' from generate_series(1, 3)")
    (refused,) = numbered.run("events").tables
    numbered.on_source("select setval('events_id_seq', 10)")
    numbered.on_source("insert into events (note) select 'next' from generate_series(1, 3)")

    numbered.run_one("events")

    assert "its sequence is at 3: if it was restarted" in refused.error
    assert is_equal(numbered, "events")


XIDS_PER_FILE = 2**20  # of pg_xact
ADVANCE = 1_500_000_000  # less than half of all ids; twice that is more


@pytest.fixture
def own_server(servers_home, free_port) -> Iterator[Server]:
    """A source whose transaction ids may be advanced."""
    server = Server(name="advanced", folder=servers_home / "advanced", port=free_port(), major=16, settings={})
    try:
        server.start()
        yield server
    finally:
        server.remove()


def advance_xids(server, url):
    """Freeze all rows, and set the next transaction id ahead, as years of work would have."""
    for one in (url, server.url("template1"), server.url()):
        with closing(psycopg2.connect(one)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("update pg_database set datallowconn = true; commit")
            cursor.execute("vacuum (freeze)")
    with closing(psycopg2.connect(server.url("template0"))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("vacuum (freeze)")
        cursor.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        (xid,) = cursor.fetchone()
    server.stop()
    epoch, ahead = divmod((xid + ADVANCE) // XIDS_PER_FILE * XIDS_PER_FILE, 2**32)
    with open_program(server, "pg_resetwal", "-e", str(epoch), "-x", str(ahead), "-D", str(server.data)) as resetting:
        assert resetting.wait(60) == 0
    file = server.data / "pg_xact" / f"{ahead // XIDS_PER_FILE:04X}"
    file.write_bytes(bytes(XIDS_PER_FILE // 4))
    owner = server.data.stat()
    os.chown(file, owner.st_uid, owner.st_gid)
    server.start()


@pytest.mark.parametrize("watermark", ["updated_at", None])
def test_frozen_and_wrapped_ids_are_not_new(
    own_server, target_url, replicate_between, create_orders, watermark, monkeypatch
):
    # Each restart would have all columns compared.
    monkeypatch.setattr(net, "sign_scan", lambda table, _: json.dumps({"columns": {}, "files": table.filenodes}))
    url = create_database(own_server)
    replication = replicate_between(url, target_url)
    create_orders(replication, 1000)
    replication.configure({"defaults": {"deletes": "none", "watermark": watermark, "reconcile_every_hours": 0}})
    replication.run_one("orders")

    for number in range(3):
        replication.source.close()
        advance_xids(own_server, url)
        replication.source = replication.open_source()
        replication.source.autocommit = True
        change_silently(replication)

        result = replication.run_one("orders")

        assert result.rows_updated == 1
        assert is_equal(replication)
        # Once all ids have been used, some rows of long ago seem new, and are read once more.
        assert number == 2 or result.rows_read == 1
