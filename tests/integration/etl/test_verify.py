"""What verify tells of every kind of difference, and what a repair mends."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl.commands.verify import verify
from etl.compare import differences
from etl.compare.buckets import MIN_BLOCK_BITS
from etl.errors import LockHeldError
from etl.model import RunOptions
from etl.target.writer import Writer
from tests.examples import ON_SERVERS
from tests.results import pick

BLOCK_KEYS = 2**MIN_BLOCK_BITS  # successive integer keys of one bucket


def compare(replication, *names, is_repair=False):
    """Return what verify finds, by table."""
    found = verify(replication.settings, names, observe=replication.events.append, is_repair=is_repair)
    return {comparison.table_name: comparison for comparison in found}


def counts(comparison):
    return pick(comparison, "missing", "extra", "changed", "pending")


def age(replication, table_name="orders"):
    """Make all rows old, so that they are below the watermark of a run."""
    replication.on_source(f"update {table_name} set updated_at = updated_at - interval '1 day'")


@pytest.fixture
def verified(orders):
    """1,000 orders, replicated, all of them below the watermark."""
    age(orders)
    orders.run_one("orders")
    return orders


def test_equal_sides_are_equal(verified):
    found = compare(verified)["orders"]

    assert found.is_equal
    assert pick(found, "source_rows", "raw_rows") == (1000, 1000)
    assert counts(found) == (0, 0, 0, 0)


def test_every_kind_of_difference_is_shown_with_key_and_columns(verified):
    verified.on_target("delete from raw.orders where order_id in (10, 11)")
    verified.on_source("delete from orders where order_id in (20, 21, 22)")
    verified.on_source("update orders set note = 'silent', total = total + 1 where order_id = 30")
    verified.on_target("update raw.orders set note = 'by hand' where order_id = 31")

    found = compare(verified)["orders"]

    assert not found.is_equal
    assert counts(found) == (2, 3, 2, 0)
    assert {(each.kind, each.key["order_id"], each.columns) for each in found.examples} == {
        ("missing", "10", ()),
        ("missing", "11", ()),
        ("extra", "20", ()),
        ("extra", "21", ()),
        ("extra", "22", ()),
        ("changed", "30", ("total", "note")),
        ("changed", "31", ("note",)),
    }


def test_update_that_kept_the_watermark_is_found_by_verify(verified):
    verified.on_source("update orders set note = 'silent' where order_id = 5")
    verified.run_one("orders")

    before = compare(verified)["orders"]
    after = compare(verified, is_repair=True)["orders"]

    assert counts(before) == (0, 0, 1, 0)
    assert after.is_equal
    assert after.repaired == 1
    assert verified.on_target("select note from raw.orders where order_id = 5") == [("silent",)]


def test_what_the_next_run_reads_is_pending(verified, insert_orders):
    insert_orders(verified.source, 7)
    verified.on_source("update orders set note = 'new', updated_at = now() where order_id <= 4")

    before = compare(verified)["orders"]
    verified.run_one("orders")
    after = compare(verified)["orders"]

    assert before.is_equal
    assert counts(before) == (0, 0, 0, 11)
    assert counts(after) == (0, 0, 0, 0)


def test_recent_extra_row_is_never_pending(verified):
    verified.on_target(
        "insert into raw.orders (order_id, total, note, updated_at) "
        "values (99999, 1, 'invented', now() + interval '1 day')"
    )

    found = compare(verified)["orders"]

    assert counts(found) == (0, 1, 0, 0)


def test_old_source_row_with_a_newer_raw_row_is_changed(verified):
    verified.on_target("update raw.orders set updated_at = now() + interval '1 day' where order_id = 3")

    found = compare(verified)["orders"]

    assert counts(found) == (0, 0, 1, 0)


def test_a_tombstone_is_not_compared(verified):
    verified.on_source("delete from orders where order_id = 1; select pg_stat_force_next_flush()")
    verified.run_one("orders")

    found = compare(verified)["orders"]

    assert found.is_equal
    assert pick(found, "source_rows", "raw_rows") == (999, 999)


def test_tombstone_of_an_existing_row_is_missing(verified):
    verified.on_target("update raw.orders set _etl_deleted_at = now() where order_id = 1")

    before = compare(verified)["orders"]
    after = compare(verified, is_repair=True)["orders"]

    assert counts(before) == (1, 0, 0, 0)
    assert after.is_equal


def test_a_table_without_watermark_has_nothing_pending(replication):
    replication.on_source("create table tags (tag text primary key, note numeric); insert into tags values ('a', 1.0)")
    replication.run_one("tags")
    replication.on_source("insert into tags values ('b', 1); update tags set note = 1.00 where tag = 'a'")

    found = compare(replication)["tags"]

    assert counts(found) == (1, 0, 1, 0)
    assert ("changed", {"tag": "a"}, ("note",)) in [(each.kind, each.key, each.columns) for each in found.examples]


def test_repair_moves_only_differences_in_a_run_of_its_own(verified):
    verified.on_target("delete from raw.orders where order_id in (1, 2)")
    verified.on_target("update raw.orders set note = 'by hand' where order_id = 3")
    verified.on_source("delete from orders where order_id = 4")
    watermark = verified.on_target("select watermark, points::text from etl.watermarks")

    found = compare(verified, is_repair=True)["orders"]

    assert found.is_equal
    assert found.repaired == 4
    source, raw = verified.rows("orders")
    assert source == [row for row in raw if not row.startswith("(4,")]
    assert verified.on_target("select order_id from raw.orders where _etl_deleted_at is not null") == [(4,)]
    assert verified.on_target(
        "select status, rows_read, rows_inserted, rows_updated, rows_deleted from etl.table_runs "
        "order by run_id desc limit 1"
    ) == [("succeeded", 3, 2, 1, 1)]
    assert verified.on_target("select watermark, points::text from etl.watermarks") == watermark
    assert verified.on_target("select distinct _etl_run_id from raw.orders where order_id <= 4") == [(2,)]


def test_repair_does_not_delete_a_whole_table(verified):
    verified.on_source("truncate orders")

    found = compare(verified, is_repair=True)["orders"]

    assert "1,000 of 1,000 rows are missing from the source" in found.error
    assert verified.on_target("select count(*) from raw.orders where _etl_deleted_at is null") == [(1000,)]


def test_a_repair_waits_for_a_run(verified):
    with psycopg2.connect(verified.target_url) as holder, holder.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(%s)", (0x74696465,))
        with pytest.raises(LockHeldError, match="another run is in progress"):
            compare(verified, is_repair=True)
    holder.close()


def test_concurrent_run_causes_no_difference(verified, monkeypatch, insert_orders):
    """The target is read as it was before the source's snapshot, whatever a run does meanwhile."""
    read = differences.read_source_checksums

    def run_first(reader, comparison):
        insert_orders(verified.source, 50)
        verified.on_source("update orders set note = 'new', updated_at = now() where order_id % 3 = 0")
        verified.run_one("orders")
        return read(reader, comparison)

    with monkeypatch.context() as patching:
        patching.setattr(differences, "read_source_checksums", run_first)
        patching.setattr(threading, "excepthook", lambda *_: None)
        found = compare(verified)["orders"]

    assert found.is_equal


def test_table_recreated_during_verify_is_not_called_empty(verified, monkeypatch):
    """In a snapshot from before, its new files hold nothing."""
    at_snapshot = Writer.at_snapshot

    def reset_first(self, snapshot):
        verified.run("orders", options=RunOptions(full_refresh=True), load_range_blocks=1)
        return at_snapshot(self, snapshot)

    monkeypatch.setattr(Writer, "at_snapshot", reset_first)

    found = compare(verified)["orders"]

    assert "raw.orders was recreated or changed while tables were compared: compare again" in found.error


def test_rows_kept_by_deletes_none_are_no_difference(verified):
    verified.configure({"tables": {"orders": {"deletes": "none"}}})
    verified.on_source("delete from orders where order_id < 4")

    found = compare(verified, is_repair=True)["orders"]

    assert found.is_equal
    assert verified.on_target("select count(*) from raw.orders where _etl_deleted_at is null") == [(1000,)]


def test_failed_repair_is_recorded_as_a_failed_run(verified):
    verified.on_source("create table fresh (a int primary key)")
    verified.on_source("update orders set note = 'silent' where order_id = 5")

    found = compare(verified, is_repair=True)

    assert found["orders"].is_equal
    assert found["fresh"].error
    last = "select run_id, status, error from etl.runs order by run_id desc limit 1"
    ((run_id, status, error),) = verified.on_target(last)
    assert (status, error) == ("failed", "failed: fresh")
    assert verified.on_target("select status from etl.table_runs where run_id = %s order by table_name", run_id) == [
        ("failed",),
        ("succeeded",),
    ]


def test_rejected_row_is_not_called_repaired(verified):
    verified.on_target("alter table raw.orders add check (note <> 'bad') not valid")
    verified.on_source("update orders set note = 'bad' where order_id = 5")

    found = compare(verified, is_repair=True)["orders"]

    assert pick(found, "is_equal", "rejected", "changed", "repaired") == (False, 1, 0, 0)


@pytest.fixture
def with_rejects(verified, insert_orders):
    """1,000 orders and two new ones, which the target rejects, as it does a change of the tenth."""
    verified.on_target("alter table raw.orders add constraint small check (total < 1000000) not valid")
    insert_orders(verified.source, 2)
    verified.on_source("update orders set total = 2000000, updated_at = now() where order_id in (10, 1001, 1002)")
    assert verified.run_one("orders").rows_rejected == 3
    return verified


def test_rejected_rows_are_neither_equal_nor_pending(with_rejects, insert_orders):
    insert_orders(with_rejects.source, 4)

    found = compare(with_rejects)["orders"]

    assert not found.is_equal
    assert pick(found, "rejected", "missing", "changed", "pending") == (3, 0, 0, 4)
    assert {(each.kind, each.key["order_id"]) for each in found.examples} == {
        ("rejected", "10"),
        ("rejected", "1001"),
        ("rejected", "1002"),
    }


def test_rejected_rows_below_the_watermark_are_called_so(with_rejects):
    with_rejects.on_source("update orders set updated_at = now() - interval '1 day' where order_id in (10, 1001)")
    with_rejects.on_target("delete from raw.orders where order_id = 20")

    found = compare(with_rejects)["orders"]

    assert pick(found, "rejected", "missing", "changed", "pending") == (3, 1, 0, 0)


def test_verify_says_rejected_and_exits_1(with_rejects):
    text = with_rejects.command("verify")
    as_json = with_rejects.command("verify", "--json")

    assert (text.returncode, as_json.returncode) == (1, 1)
    assert "different: 3 rejected by the target (see etl.rejected_rows)" in text.stdout
    assert "pending" not in text.stdout
    assert "orders: order_id = 1001 is rejected by the target" in text.stdout
    (record,) = json.loads(as_json.stdout)
    assert pick(record, "rejected", "pending", "is_equal") == (3, 0, False)


def test_repair_loads_rows_that_are_no_longer_rejected(with_rejects):
    with_rejects.on_target("alter table raw.orders drop constraint small")

    found = compare(with_rejects, is_repair=True)["orders"]

    assert pick(found, "is_equal", "rejected", "repaired") == (True, 0, 3)
    assert with_rejects.on_target("select count(*) from etl.rejected_rows") == [(0,)]


def test_a_rejected_change_taken_back_is_equal(with_rejects):
    with_rejects.on_source("delete from orders where order_id > 1000")
    ((total, stamp),) = with_rejects.on_target("select total, updated_at from raw.orders where order_id = 10")
    with_rejects.on_source("update orders set total = %s, updated_at = %s where order_id = 10", total, stamp)

    assert compare(with_rejects)["orders"].is_equal


def test_verify_of_an_older_ledger_asks_for_a_run(verified):
    verified.on_target("comment on table etl.runs is 'Ledger version 1.'")

    finished = verified.command("verify")

    assert finished.returncode == 3
    assert "run `etl run` first" in finished.stderr


def test_only_differing_buckets_are_examined(replication, count_copied_lines):
    rows = 20 * BLOCK_KEYS
    replication.on_source("create table items (item_id int primary key, note text)")
    replication.on_source("insert into items select n, 'note' from generate_series(1, %s) as n", rows)
    replication.run_one("items")
    replication.on_source("update items set note = 'x' where item_id = %s", rows // 2)
    lines = count_copied_lines()

    found = compare(replication)["items"]

    assert counts(found) == (0, 0, 1, 0)
    assert 0 < sum(lines) <= BLOCK_KEYS


def test_exit_codes_and_lines_distinguish_every_outcome(verified):
    equal = verified.command("verify")
    verified.on_source("update orders set note = 'silent' where order_id = 5")
    different = verified.command("verify")
    as_json = verified.command("verify", "--json")
    repaired = verified.command("verify", "--repair")
    again = verified.command("verify", "orders")
    verified.on_source("create table fresh (a int primary key)")
    impossible = verified.command("verify")

    codes = {"equal": equal.returncode, "different": different.returncode, "as JSON": as_json.returncode}
    assert codes == {"equal": 0, "different": 1, "as JSON": 1}
    codes = {"repaired": repaired.returncode, "again": again.returncode, "impossible": impossible.returncode}
    assert codes == {"repaired": 0, "again": 0, "impossible": 3}
    assert "different: 1 changed" in different.stdout
    assert "orders: order_id = 5 is different in raw: note" in different.stdout
    (record,) = json.loads(as_json.stdout)
    assert pick(record, "changed", "is_equal") == (1, False)
    assert record["examples"] == [{"kind": "changed", "key": {"order_id": "5"}, "columns": ["note"]}]
    assert "equal, after 1 rows were repaired" in repaired.stdout
    assert "expected raw.fresh on the target, found none: run `etl run` first" in impossible.stdout
    assert "orders  1,000        1,000     equal" in impossible.stdout


def test_verify_stays_within_the_source_session_limit(replication, monkeypatch):
    for number in range(6):
        replication.on_source(f"create table t{number} (a int primary key); insert into t{number} values (1)")
    replication.run()
    seen = []
    read = differences.read_source_checksums

    def count_first(reader, comparison):
        with psycopg2.connect(replication.source_url) as other, other.cursor() as cursor:
            cursor.execute(
                "select count(*) from pg_stat_activity where application_name = 'tidemark' "
                "and datname = current_database()"
            )
            seen.append(cursor.fetchone()[0])
        other.close()
        return read(reader, comparison)

    monkeypatch.setattr(differences, "read_source_checksums", count_first)

    found = compare(replication)

    assert len(found) == 6
    assert max(seen) <= replication.settings.max_connections_source


SIDES = st.sampled_from(["source", "target"])
EDITS = {
    "insert": "insert into {table} (order_id, total, note, updated_at) overriding system value "
    "values (%(n)s + 5000, 1, 'new', '2001-01-01Z') on conflict do nothing",
    "delete": "delete from {table} where order_id = %(n)s",
    "update": "update {table} set note = note || '!' where order_id = %(n)s",
    "change the scale": "update {table} set total = total::text::numeric * 1.0 where order_id = %(n)s",
}
EDIT = st.tuples(SIDES, st.sampled_from(sorted(EDITS)), st.integers(1, 40))
EDITED = "select order_id, row(order_id, status, total, attributes, note, updated_at)::text from {} order by 1"


@pytest.mark.has_long_form
@given(edits=st.lists(EDIT, max_size=12))
@example(edits=[("source", "insert", 35), ("target", "insert", 35)])  # with defaults, which raw does not have
@settings.get_profile(ON_SERVERS)
def test_counts_match_the_definition_and_repair_equalizes_sides(verified, edits):
    for side, name, n in edits:
        connection, table = (verified.source, "orders") if side == "source" else (verified.target, "raw.orders")
        with connection.cursor() as cursor:
            cursor.execute(EDITS[name].format(table=table), {"n": n})
    in_source, in_raw = read_both(verified)
    expected = (
        len(in_source.keys() - in_raw.keys()),
        len(in_raw.keys() - in_source.keys()),
        sum(in_raw.get(key, row) != row for key, row in in_source.items()),
        0,
    )

    found = compare(verified)["orders"]
    repaired = compare(verified, is_repair=True)["orders"]

    assert counts(found) == expected
    assert found.is_equal == (expected == (0, 0, 0, 0))
    assert repaired.is_equal
    assert repaired.repaired == sum(expected)
    in_source, in_raw = read_both(verified)
    assert in_source == in_raw


def read_both(replication):
    in_source = dict(replication.on_source(EDITED.format("orders")))
    return in_source, dict(
        replication.on_target(EDITED.format("(select * from raw.orders where _etl_deleted_at is null) as o"))
    )


def test_tables_are_compared_in_parallel_at_one_snapshot(replication, monkeypatch):
    for name in ("one", "two"):
        replication.on_source(f"create table {name} (a int primary key); insert into {name} values (1)")
    replication.run()
    both = threading.Barrier(2, timeout=20)
    read = differences.read_source_checksums

    def meet(reader, comparison):
        both.wait()
        return read(reader, comparison)

    monkeypatch.setattr(differences, "read_source_checksums", meet)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(compare, replication).result(timeout=30)

    assert [comparison for comparison in found.values() if not comparison.is_equal] == []
