"""The fence: a row that becomes visible late, with an old watermark, still arrives."""

import threading

import pytest


def commit_across_a_run(orders):
    """Hold a transaction open across a run in which a younger row is replicated; return the late row's id."""
    orders.run_one("orders")
    writer = orders.open_source()
    with writer.cursor() as cursor:
        cursor.execute("insert into orders (total, note) values (1, 'late') returning order_id")
        (order_id,) = cursor.fetchone()
    orders.on_source("insert into orders (total, note) values (2, 'younger')")
    orders.run_one("orders")
    during = orders.on_target("select count(*) from raw.orders where order_id = %s", order_id)
    writer.commit()
    writer.close()
    orders.run_one("orders")
    assert during == [(0,)]
    return order_id


def test_late_commit_arrives(reader):
    order_id = commit_across_a_run(reader)

    assert reader.on_target("select note from raw.orders where order_id = %s", order_id) == [("late",)]
    source, raw = reader.rows("orders")
    assert source == raw


@pytest.mark.usefixtures("watermark_is_maximum")
def test_late_commit_is_lost_with_the_maximum_as_watermark(orders):
    order_id = commit_across_a_run(orders)

    assert orders.on_target("select note from raw.orders where order_id = %s", order_id) == []


def test_integer_watermark_waits_for_lower_uncommitted_numbers(replication):
    replication.on_source("create table events (event_id bigint generated always as identity primary key, note text)")
    replication.configure({"tables": {"events": {"watermark": "event_id"}}})
    replication.on_source("insert into events (note) values ('first')")
    replication.run_one("events")
    writer = replication.open_source()
    with writer.cursor() as cursor:
        cursor.execute("insert into events (note) values ('late')")
    replication.on_source("insert into events (note) values ('younger')")
    replication.run_one("events")
    held = replication.on_target("select watermark from etl.watermarks")
    writer.commit()
    writer.close()
    replication.run_one("events")

    source, raw = replication.rows("events")
    assert held == [("1",)]
    assert len(raw) == 3
    assert source == raw
    assert replication.on_target("select watermark from etl.watermarks") == [("3",)]


def test_fresh_rows_are_not_held_back_by_an_open_transaction(orders):
    orders.run_one("orders")
    writer = orders.open_source()
    with writer.cursor() as cursor:
        cursor.execute("insert into orders (total) values (1)")
    orders.on_source("insert into orders (total, note) values (2, 'fresh')")

    result = orders.run_one("orders")

    assert orders.on_target("select count(*) from raw.orders where note = 'fresh'") == [(1,)]
    assert result.rows_inserted == 1
    writer.close()


def test_prepared_transaction_holds_the_watermark_until_commit(orders):
    orders.run_one("orders")
    writer = orders.open_source()
    with writer.cursor() as cursor:
        cursor.execute("insert into orders (total, note) values (1, 'prepared')")
        cursor.execute("prepare transaction 'held'")
    writer.commit()
    writer.close()
    before = orders.on_target("select watermark from etl.watermarks")
    orders.run_one("orders")
    orders.run_one("orders")
    held = orders.on_target("select watermark from etl.watermarks")
    orders.on_source("commit prepared 'held'")
    orders.run_one("orders")

    source, raw = orders.rows("orders")
    assert held == before
    assert source == raw
    assert orders.on_target("select watermark from etl.watermarks") > before


def test_transaction_without_writes_yet_counts_as_a_writer(reader):
    reader.run_one("orders")
    writer = reader.open_source()
    with writer.cursor() as cursor:
        cursor.execute("select count(*) from orders")
        reader.on_source("insert into orders (total, note) values (2, 'younger')")
        reader.run_one("orders")
        reader.run_one("orders")
        cursor.execute("insert into orders (total, note) values (1, 'late')")
    writer.commit()
    writer.close()
    reader.run_one("orders")

    source, raw = reader.rows("orders")
    assert source == raw


def test_second_transaction_in_one_message_is_caught(orders, wait_until):
    """Two transactions in one message share its now(): the second begins after the listing, with an old time.

    The first is open when a point is taken and has ended at the next listing, so its id alone would let the point
    settle; the second then commits a row below it.
    """
    orders.run_one("orders")
    gate, writer = orders.open_source(), orders.open_source()
    gate.autocommit = writer.autocommit = True
    message = (
        "begin; insert into orders (total, note) values (1, 'one'); select pg_advisory_lock(1); commit; "
        "begin; select pg_advisory_lock(2); insert into orders (total, note) values (1, 'two'); commit"
    )

    def write():
        with writer.cursor() as writing:
            writing.execute(message)

    def wait_for_gate(number):
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = %s"
        wait_until(lambda: orders.on_source(waiting, number) == [(1,)])

    with gate.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(1), pg_advisory_lock(2)")
        thread = threading.Thread(target=write)
        thread.start()
        wait_for_gate(1)
        orders.on_source("insert into orders (total, note) values (2, 'younger')")
        orders.run_one("orders")
        cursor.execute("select pg_advisory_unlock(1)")
        wait_for_gate(2)
        orders.run_one("orders")
        cursor.execute("select pg_advisory_unlock(2)")
        thread.join()
    writer.close()
    gate.close()
    orders.run_one("orders")

    source, raw = orders.rows("orders")
    assert any("two" in row for row in source)
    assert source == raw


@pytest.mark.parametrize("kind", ["timestamp(3)", "date", "timestamptz(0)"])
def test_other_kinds_of_watermark_see_a_late_commit(replication, kind):
    replication.on_source(
        f"create table notes (note_id int primary key, note text, updated_at {kind} not null default now())"
    )
    replication.on_source("set timezone = 'UTC'")
    replication.on_source("insert into notes values (1, 'first')")
    replication.run_one("notes")
    writer = replication.open_source()
    with writer.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'")
        cursor.execute("insert into notes values (2, 'late')")
    replication.on_source("insert into notes values (3, 'younger')")
    replication.run_one("notes")
    writer.commit()
    writer.close()
    replication.run_one("notes")

    source, raw = replication.rows("notes")
    assert len(raw) == 3
    assert source == raw
