"""Faults, injected for real. After each, one more run makes both sides equal and leaves nothing behind."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest


def start_run(replication, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "etl", "run"],
        env={**replication.environment, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole(replication, wait_until):
    """Both sides are equal, nothing is twice, and no session, lock or temporary table is left."""
    source, raw = replication.rows("orders")
    assert len(source) == len(set(source))
    assert source == raw
    wait_until(
        lambda: (
            replication.on_target(
                "select count(*) from pg_stat_activity where application_name = 'tidemark' "
                "and datname = current_database()"
            )
            == [(0,)]
        )
    )
    assert replication.on_target("select count(*) from pg_class where relpersistence = 't'") == [(0,)]
    assert replication.on_target("select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]
    assert replication.on_target("select count(*) from etl.runs where status = 'running'") == [(0,)]


@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_at_any_moment_loses_nothing_and_doubles_nothing(orders, insert_orders, seed, wait_until):
    """Half of the kills hit a first load, half a run that merges many batches."""
    chance = random.Random(seed)
    tables = str(orders.write_tables("defaults: {batch_rows: 500}\n"))
    insert_orders(orders.source, 40_000)
    if seed % 2:
        orders.run_one("orders")
        orders.on_source("update orders set note = note || '!', updated_at = clock_timestamp()")
    process = start_run(orders, ETL_TABLES=tables)
    wait_until(
        lambda: (
            (
                orders.on_target("select to_regclass('etl.table_runs') is not null") == [(True,)]
                and orders.on_target("select count(*) from etl.table_runs where status = 'running'") == [(1,)]
            )
            or process.poll() is not None
        )
    )
    time.sleep(chance.uniform(0, 0.25))
    process.kill()
    process.communicate()
    unfinished = orders.on_target("select count(*) from etl.runs where status = 'running'")
    orders.on_source("insert into orders (total, note) values (1, 'meanwhile')")

    finished = orders.command("run", ETL_TABLES=tables)

    assert finished.returncode == 0, finished.stderr
    assert_whole(orders, wait_until)
    assert orders.on_target("select count(*) from etl.runs where status = 'died'") == unfinished


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_session_terminated_in_mid_run_is_retried(orders, insert_orders, side, wait_until):
    insert_orders(orders.source, 60_000)
    tables = str(orders.write_tables("defaults: {batch_rows: 200}\n"))
    orders.run_one("orders")
    orders.on_source("update orders set note = note || '!', updated_at = clock_timestamp()")
    query = orders.on_source if side == "source" else orders.on_target
    process = start_run(orders, ETL_TABLES=tables)
    wait_until(
        lambda: orders.on_target("select count(*) from etl.table_runs where batches > 2 and run_id = 2") == [(1,)]
    )
    # The newest session works on the table; the oldest holds the snapshot, or the lock.
    killed = query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'tidemark' "
        "and datname = current_database() order by backend_start desc limit 1"
    )
    _, stderr = process.communicate(timeout=60)

    assert killed == [(True,)]
    assert process.returncode == 0, stderr
    assert "will be tried again" in stderr
    assert orders.on_target("select retries from etl.table_runs where run_id = 2") == [(1,)]
    assert_whole(orders, wait_until)


def test_a_second_run_beside_the_first_names_the_holder_and_exits_3(orders):
    with_lock = orders.target
    orders.on_target("select pg_advisory_lock(1953064037)")
    try:
        refused = orders.command("run", ETL_LOCK_WAIT_SECONDS="0.2")
    finally:
        orders.on_target("select pg_advisory_unlock(1953064037)")

    assert refused.returncode == 3
    assert f"pid {with_lock.info.backend_pid}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert orders.on_target("select to_regclass('raw.orders')") == [(None,)]


def test_two_runs_at_once_are_serial_and_right(orders, insert_orders, wait_until):
    insert_orders(orders.source, 20_000)
    processes = [start_run(orders) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert orders.on_target(
        "select count(*) from etl.runs as a join etl.runs as b on a.run_id < b.run_id and b.started_at < a.ended_at"
    ) == [(0,)]
    assert_whole(orders, wait_until)


def test_a_run_that_was_taken_for_dead_cannot_write_any_more(orders, monkeypatch):
    """A run that lost its lock, but not its worker sessions, finds at its next batch that it is over."""
    from etl.target import Writer

    orders.run_one("orders")
    orders.on_source("update orders set note = 'new', updated_at = clock_timestamp()")
    open_batch = Writer.open_batch

    def open_after_takeover(self):
        orders.on_target("update etl.runs set status = 'died', ended_at = now() where status = 'running'")
        return open_batch(self)

    monkeypatch.setattr(Writer, "open_batch", open_after_takeover)

    (result,) = orders.run("orders").tables

    assert result.status == "failed"
    assert "another run has taken over" in str(result.error)
    assert orders.on_target("select count(*) from raw.orders where note = 'new'") == [(0,)]


def test_an_interrupted_run_says_so_and_frees_its_lock(orders, insert_orders, wait_until):
    insert_orders(orders.source, 60_000)
    process = start_run(orders, ETL_TABLES=str(orders.write_tables("defaults: {batch_rows: 200}\n")))
    wait_until(lambda: orders.on_target("select to_regclass('etl.runs') is not null") == [(True,)])
    wait_until(lambda: orders.on_target("select count(*) from etl.runs") == [(1,)])
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode in (0, 130)
    assert "Traceback" not in stderr
    orders.run_one("orders")
    assert_whole(orders, wait_until)
