"""Faults, injected for real. After each, one more run makes both sides equal and leaves nothing behind.

Here are the faults of runs, connections and other sessions; test_server_faults.py has those of servers and disks.
Moments are numbers of bytes or messages that a proxy has passed on, or conditions to wait for, so that a seed finds
its moment again.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg2
import pytest

import etl
from etl.database_url import DatabaseUrl
from etl.errors import EtlError, UnavailableError
from tests.integration.etl.faults import (
    COPIED_BYTES,
    FIRST_IN_ONE,
    FIRST_IN_RANGES,
    MARGIN_BYTES,
    MERGE,
    SIDES,
    Proxy,
    assert_nothing_left,
    assert_whole,
    execute,
    has_no_sessions,
    port_of,
    stock,
    through,
    touch_orders,
)

BATCHES = "defaults: {batch_rows: 500}\n"


def pytest_generate_tests(metafunc):
    """Give a test that asks for `kill` 8 seeds, or 50 in the long form, and one that asks for `cut` 3 or 12."""
    is_long = metafunc.config.getoption("--long")
    for name, short, long in (("kill", 8, 50), ("cut", 3, 12)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, range(long if is_long else short))


def start_run(replication, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "etl", "run", *arguments],
        env={**replication.environment, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_there(replication, name):
    return replication.on_target("select to_regclass(%s) is not null", name) == [(True,)]


@pytest.fixture
def shop(orders, insert_orders):
    """The orders, many of them, and a table without watermark beside them."""
    stock(orders, insert_orders)
    return orders


@contextmanager
def proxied(replication, side, limit, act, **options):
    """Put a proxy before one side, whose moment comes after bytes of rows; its URL is in the settings."""
    url = replication.source_url if side == "source" else replication.target_url
    with closing(Proxy(port_of(url), limit, act, from_clients=side == "target", **options)) as proxy:
        yield proxy, DatabaseUrl(through(proxy, url))


# A load in ranges has more to go wrong.
PHASES = (FIRST_IN_ONE, FIRST_IN_RANGES, MERGE, FIRST_IN_RANGES)
# What a whole run sends to the target, about.
MESSAGES = {FIRST_IN_ONE: 85, FIRST_IN_RANGES: 180, MERGE: 320}


def kill_after(replication, messages, **environment):
    """Start a run and kill it once it has sent this many messages to the target, unless it has ended by then."""
    started = threading.Event()
    process = None

    def kill(_):
        started.wait()
        process.kill()

    with proxied(replication, "target", messages, kill, in_messages=True) as (proxy, url):
        process = start_run(replication, TARGET_DATABASE_URL=url, **environment)
        started.set()
        _, stderr = process.communicate(timeout=60)
        is_killed = proxy.has_acted.is_set()
    assert process.returncode in ((0, -signal.SIGKILL) if is_killed else (0,)), stderr


def change_between_runs(replication, chance):
    """Write what the next run has to find: silently where the table is read whole, else with its time."""
    replication.on_source("insert into orders (total, note) values (1, 'meanwhile')")
    replication.on_source("insert into tags select max(tag_id) + 1, 'meanwhile' from tags")
    replication.on_source("update tags set label = label || '?' where tag_id %% 7 = %s", chance.randrange(7))
    if is_there(replication, "raw.orders"):
        replication.on_source(
            "update orders set note = note || '?', updated_at = clock_timestamp() where order_id %% 7 = %s",
            chance.randrange(7),
        )
    else:
        replication.on_source("update orders set note = note || '?' where order_id %% 7 = %s", chance.randrange(7))
        replication.on_source("delete from orders where order_id %% 97 = %s", chance.randrange(97))


@pytest.mark.has_long_form
def test_run_killed_at_any_moment_loses_and_duplicates_nothing(shop, kill, wait_until):
    """A first load in ranges is killed twice: the second time while it goes on."""
    chance, phase = random.Random(kill), PHASES[kill % len(PHASES)]
    environment = {"ETL_TABLES": str(shop.write_tables(BATCHES))}
    if phase == FIRST_IN_RANGES:
        environment["ETL_LOAD_RANGE_BLOCKS"] = "8"
    if phase == MERGE:
        shop.run()
        touch_orders(shop)
    died = 0
    for part in (1, 2) if phase == FIRST_IN_RANGES else (1,):
        kill_after(shop, chance.randint(1, MESSAGES[phase] // part), **environment)
        wait_until(lambda: has_no_sessions(shop))
        if is_there(shop, "etl.runs"):
            ((died,),) = shop.on_target("select count(*) from etl.runs where status in ('running', 'died')")
        change_between_runs(shop, chance)

    finished = shop.command("run", **environment)

    assert finished.returncode == 0, finished.stderr
    assert_whole(shop, wait_until)
    assert shop.on_target("select count(*) from etl.runs where status = 'died'") == [(died,)]


def prepare_phase(shop, phase):
    """Bring the shop to the start of a phase, and return the settings with which it is played."""
    if phase == MERGE:
        shop.run()
        touch_orders(shop)
    shop.configure({"defaults": {"batch_rows": 500}})
    return {"load_range_blocks": 8} if phase == FIRST_IN_RANGES else {}


def choose_cut(side, cut):
    """Return the phase, the byte and the manner of a cut; three in a row play each phase, six each manner of it."""
    phase = (FIRST_IN_ONE, FIRST_IN_RANGES, MERGE)[cut % 3]
    return phase, random.Random(f"{side} {cut}").randint(MARGIN_BYTES, COPIED_BYTES), cut % 2 == SIDES.index(side)


@pytest.mark.has_long_form
@pytest.mark.parametrize("side", SIDES)
def test_connection_lost_during_copy_is_retried(shop, side, cut, wait_until):
    phase, limit, resets = choose_cut(side, cut)
    changes = prepare_phase(shop, phase)

    with proxied(shop, side, limit, lambda link: link.cut(resets=resets)) as (proxy, url):
        run = shop.run(**changes, **{f"{side}_url": url})

        assert proxy.has_acted.is_set()
    assert [table.error for table in run.tables] == [None, None]
    (retried,) = [event for event in shop.events if event.kind == "table_retried"]
    assert retried.message.startswith(f"public.{retried.table_name}: the {side} answered: ")
    assert shop.on_target("select table_name, retries from etl.table_runs where retries > 0") == [
        (retried.table_name, 1)
    ]
    assert_whole(shop, wait_until)


@pytest.mark.has_long_form
def test_losing_all_source_connections_retries_everything(shop, cut, wait_until):
    """The session that holds the snapshot is gone as well: the next attempt takes another one."""
    phase, limit, resets = choose_cut("source", cut)
    changes = prepare_phase(shop, phase)

    with proxied(shop, "source", limit, lambda _: proxy.cut_all(resets=resets)) as (proxy, url):
        run = shop.run(**changes, source_url=url)

        assert proxy.has_acted.is_set()
    assert [table.error for table in run.tables] == [None, None]
    assert_whole(shop, wait_until)


@pytest.mark.has_long_form
def test_losing_all_target_connections_stops_the_run(shop, cut, wait_until):
    """The run has lost its lock, so that it must not write any more."""
    phase, limit, resets = choose_cut("target", cut)
    changes = prepare_phase(shop, phase)

    with (
        proxied(shop, "target", limit, lambda _: proxy.cut_all(resets=resets)) as (proxy, url),
        pytest.raises(UnavailableError, match="the run has lost its lock, because its session on the target ended "),
    ):
        shop.run(**changes, target_url=url)

    wait_until(lambda: has_no_sessions(shop))
    assert shop.on_target("select count(*) from etl.runs where status = 'running'") == [(1,)]
    shop.run(**changes)
    assert_whole(shop, wait_until)
    assert shop.on_target("select count(*) from etl.runs where status = 'died'") == [(1,)]


@pytest.mark.has_long_form
@pytest.mark.parametrize("side", SIDES)
def test_connection_cut_at_any_byte_is_survived_or_explained(shop, side, cut, wait_until):
    """Between the first byte of the first session and the first rows: logging in, the lock, the catalog, the points."""
    chance = random.Random(f"{side} {cut}")
    limit, resets = chance.randint(1, 30_000 if side == "source" else 12_000), chance.random() < 0.5
    with proxied(shop, side, limit, lambda link: link.cut(resets=resets)) as (proxy, url):
        results, error = run_or_error(shop, **{f"{side}_url": url})

        assert proxy.has_acted.is_set()
    assert [result.error for result in results if result.status != "succeeded"] == []
    if error is not None:
        assert isinstance(error, UnavailableError)
        assert side in str(error)
    wait_until(lambda: has_no_sessions(shop))
    shop.run()
    assert_whole(shop, wait_until)


def test_losing_the_first_target_session_always_exits_3(orders, wait_until):
    """Every hundred bytes on the way from taking the lock to the record of the run."""
    orders.run()
    errors = []
    for limit in range(800, 2600, 100):
        with proxied(orders, "target", limit, lambda link: link.cut(resets=False)) as (proxy, url):
            errors.append(run_or_error(orders, target_url=url)[1])

            assert proxy.has_acted.is_set()
    errors = [error for error in errors if error is not None]

    assert len(errors) > 5
    assert [str(error) for error in errors if error.exit_code != 3] == []
    orders.run()
    assert_whole(orders, wait_until)


def run_or_error(replication, **changes):
    try:
        return replication.run(**changes).tables, None
    except EtlError as error:
        return (), error


@pytest.mark.parametrize("side", ["source", "target"])
def test_session_terminated_during_a_run_is_retried(orders, insert_orders, side, wait_until):
    insert_orders(orders.source, 15_000)
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
    assert "will be retried" in stderr
    assert orders.on_target("select retries from etl.table_runs where run_id = 2") == [(1,)]
    assert_whole(orders, wait_until)


def test_remaining_tables_use_another_snapshot_after_its_loss(shop, wait_until):
    """The tables that were done by then stay so."""
    ended = []

    def end_snapshot(event):
        shop.events.append(event)
        if event.kind == "table_finished" and not ended:
            ended.extend(
                shop.on_source(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'tidemark' "
                    "and datname = current_database() order by backend_start limit 1"
                )
            )

    run = etl.run(replace(shop.settings, parallel_tables=1), observe=end_snapshot)

    assert ended == [(True,)]
    assert [(table.table_name, table.error, table.retries) for table in run.tables] == [
        ("orders", None, 0),
        ("tags", None, 1),
    ]
    assert_whole(shop, wait_until)


def test_second_run_names_the_lock_holder_and_exits_3(orders):
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


def test_concurrent_runs_are_serialized_and_correct(orders, insert_orders, wait_until):
    insert_orders(orders.source, 20_000)
    processes = [start_run(orders) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert orders.on_target(
        "select count(*) from etl.runs as a join etl.runs as b on a.run_id < b.run_id and b.started_at < a.ended_at"
    ) == [(0,)]
    assert_whole(orders, wait_until)


def test_run_marked_as_died_cannot_write_any_more(orders, monkeypatch):
    """A run that lost its lock, but not its worker sessions, finds at its next batch that it is over."""
    from etl.target.writer import Writer

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


def test_interrupted_run_is_reported_and_releases_its_lock(orders, insert_orders, wait_until):
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


@contextmanager
def analyst_on(replication, side):
    """Another session, in a transaction, which ends with the block at the latest."""
    url = replication.source_url if side == "source" else replication.target_url
    with closing(psycopg2.connect(url)) as analyst:
        yield analyst


def lock_orders(analyst, side):
    execute(analyst, f"lock table {'public' if side == 'source' else 'raw'}.orders in access exclusive mode")


def blocks_a_run(replication, analyst):
    """Tell whether a session of ours on the target waits for this one."""
    return replication.on_target(
        "select count(*) > 0 from pg_stat_activity where application_name = 'tidemark' and %s = any "
        "(pg_blocking_pids(pid))",
        analyst.info.backend_pid,
    ) == [(True,)]


def test_deadlock_with_another_session_is_retried(shop, wait_until):
    """The analyst holds a row that the batch comes to, and then wants one that the batch has written."""
    shop.run()
    touch_orders(shop)
    (database,) = shop.on_target("select current_database()")[0]
    shop.on_target(f"alter database {database} set deadlock_timeout = '2s'")
    with ThreadPoolExecutor(1) as pool, analyst_on(shop, "target") as analyst:
        execute(analyst, "set deadlock_timeout = '1min'")  # it is the run that finds the deadlock, and gives way
        execute(analyst, "select from raw.orders where order_id = 5000 for update")
        run = pool.submit(shop.run)
        wait_until(lambda: blocks_a_run(shop, analyst))
        ((written,),) = execute(
            analyst,
            "with free as (select order_id from raw.orders for update skip locked) "
            "select min(order_id) from raw.orders where order_id not in (select order_id from free)",
        )
        assert written is not None
        execute(analyst, "select from raw.orders where order_id = %s for update", written)
        analyst.rollback()
        tables = run.result(timeout=60).tables

    assert [table.error for table in tables] == [None, None]
    (retried,) = [event.message for event in shop.events if event.kind == "table_retried"]
    assert retried.startswith("public.orders: the target answered: deadlock detected")
    assert "SQLSTATE 40P01" in retried
    assert shop.on_target("select table_name, retries from etl.table_runs where retries > 0") == [("orders", 1)]
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("side", SIDES)
def test_lock_held_briefly_by_another_session_is_waited_for(shop, side, wait_until):
    shop.run()
    touch_orders(shop)
    with ThreadPoolExecutor(1) as pool, analyst_on(shop, side) as analyst:
        lock_orders(analyst, side)
        run = pool.submit(shop.run, lock_timeout_seconds=0.2)
        wait_until(lambda: any(event.kind == "table_retried" for event in shop.events))
        analyst.rollback()
        tables = run.result(timeout=60).tables

    assert [table.error for table in tables] == [None, None]
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("side", SIDES)
def test_lock_held_too_long_fails_its_table_with_the_next_step(shop, side, wait_until):
    shop.run()
    touch_orders(shop)
    shop.on_source("insert into tags values (0, 'new')")
    with analyst_on(shop, side) as analyst:
        lock_orders(analyst, side)
        failed = shop.command("run", ETL_LOCK_TIMEOUT_SECONDS="0.2", ETL_MAX_ATTEMPTS="2")

    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert f"public.orders: the {side} answered: canceling statement due to lock timeout" in failed.stderr
    assert f"(SQLSTATE 55P03): see what holds the lock on the {side} in pg_locks" in failed.stderr
    assert shop.on_target("select table_name, status, retries from etl.table_runs where run_id = 2 order by 1") == [
        ("orders", "failed", 1),
        ("tags", "succeeded", 0),
    ]
    assert shop.on_target("select label from raw.tags where tag_id = 0") == [("new",)]
    assert_nothing_left(shop, wait_until)
    shop.run()
    assert_whole(shop, wait_until)


@pytest.mark.parametrize("side", SIDES)
def test_statement_timeout_fails_at_once_and_names_the_setting(shop, side, wait_until):
    shop.run()
    touch_orders(shop)
    shop.on_source("insert into tags values (0, 'new')")
    with analyst_on(shop, side) as analyst:
        lock_orders(analyst, side)
        failed = shop.command("run", ETL_LOCK_TIMEOUT_SECONDS="50", ETL_STATEMENT_TIMEOUT_SECONDS="1")

    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert f"public.orders: the {side} answered: canceling statement due to statement timeout" in failed.stderr
    assert "(SQLSTATE 57014): raise ETL_STATEMENT_TIMEOUT_SECONDS" in failed.stderr
    assert "will be retried" not in failed.stderr
    assert shop.on_target("select table_name, status, retries from etl.table_runs where run_id = 2 order by 1") == [
        ("orders", "failed", 0),
        ("tags", "succeeded", 0),
    ]
    assert_nothing_left(shop, wait_until)
    shop.run()
    assert_whole(shop, wait_until)


def test_runs_beside_a_long_run_name_it_and_exit_3(shop, wait_until):
    """Three at once: the first is held up, the others give up, and the first succeeds when it can."""
    shop.run()
    touch_orders(shop)
    with analyst_on(shop, "target") as analyst:
        lock_orders(analyst, "target")
        first = start_run(shop, ETL_LOCK_TIMEOUT_SECONDS="50")
        wait_until(lambda: blocks_a_run(shop, analyst))
        ((holder, address),) = shop.on_target(
            "select pid, host(client_addr) from pg_locks join pg_stat_activity using (pid) "
            "where locktype = 'advisory' and granted"
        )
        others = [start_run(shop, ETL_LOCK_WAIT_SECONDS="0.2") for _ in range(2)]
        refusals = [other.communicate(timeout=60)[1] for other in others]
    _, stderr = first.communicate(timeout=60)

    assert [other.returncode for other in others] == [3, 3]
    for refusal in refusals:
        assert f"etl: another run is in progress on this target (pid {holder}, user postgres, " in refusal
        assert f", application tidemark, from {address}" in refusal
        assert "run again once it has ended, or wait longer with ETL_LOCK_WAIT_SECONDS" in refusal
    assert first.returncode == 0, stderr
    assert shop.on_target("select run_id, status from etl.runs order by run_id") == [(1, "succeeded"), (2, "succeeded")]
    assert_whole(shop, wait_until)
