"""Processes that share a run replicate a table each; whatever comes between them, no build loses a row."""

import random
import signal
import subprocess
import sys
from contextlib import closing, contextmanager

import psycopg2
import pytest

from etl.commands import shared_run
from etl.database_url import DatabaseUrl
from etl.errors import EtlError, LockHeldError
from etl.ledger import runs
from etl.model import RunOptions
from tests.results import pick

# What a process of its own does: one table of a run.
WORKER = """
import sys
from etl.commands import shared_run
from etl.config import load_settings
result = shared_run.replicate(load_settings(), int(sys.argv[1]), sys.argv[2], observe=lambda event: None)
print(result.run_id, result.tables[0].status, result.tables[0].error)
"""
SHOP = """
    create table customers (customer_id int primary key, note text not null default '', updated_at timestamptz
        not null default clock_timestamp());
    create table orders (order_id int primary key, customer_id int not null references customers,
        note text not null default '', updated_at timestamptz not null default clock_timestamp());
    create table items (item_id int primary key, order_id int not null references orders,
        note text not null default '', updated_at timestamptz not null default clock_timestamp());
    create index on customers (updated_at); create index on orders (updated_at); create index on items (updated_at);
    insert into customers select generate_series(1, 30);
    insert into orders select n, 1 + n % 30 from generate_series(1, 60) as n;
    insert into items select n, 1 + n % 60 from generate_series(1, 120) as n
"""
KEYS = {"items": "item_id", "orders": "order_id", "customers": "customer_id"}
RUNS = "select run_id, status, shared_by from etl.runs order by run_id"
TABLE_RUNS = "select table_name, status from etl.table_runs where run_id = %s order by 1"
ORPHANS = """
    select
        (select count(*) from raw.items as i
            where not exists (select from raw.orders as o where o.order_id = i.order_id)),
        (select count(*) from raw.orders as o
            where not exists (select from raw.customers as c where c.customer_id = o.customer_id))
"""
RUN_LOCKS = "select pid, mode, granted from pg_locks where locktype = 'advisory' and objsubid = 1 and database = %s"
SHARED_HOLDERS = """
    select l.pid from pg_locks as l
    where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ShareLock' and l.granted
        and l.database = (select oid from pg_database where datname = current_database())
    order by 1
"""
WAITERS = """
    select count(*) from pg_locks as l
    where not l.granted and l.database = (select oid from pg_database where datname = current_database())
        and l.locktype = %s
"""


@pytest.fixture
def shop(replication):
    """Items refer to orders, and these to customers."""
    replication.on_source(SHOP)
    return replication


def begin(shop, shared_by="a test", **changes):
    return shared_run.begin(shop.settings_with(**changes), shared_by=shared_by, observe=shop.events.append)


def replicate(shop, run, table_name, *, observe=None, options=None, **changes):
    settings = shop.settings_with(**changes)
    return shared_run.replicate(
        settings, run.run_id, table_name, observe=observe or shop.events.append, options=options
    )


def end(shop, run, **changes):
    return shared_run.end(shop.settings_with(**changes), run.run_id, observe=shop.events.append)


def start(shop, run, table_name, **environment):
    """Start a process that replicates one table."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run.run_id), table_name],
        env={**shop.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_by_hand(shop):
    """Start a run over all tables."""
    command = [sys.executable, "-m", "etl", "run"]
    return subprocess.Popen(command, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def statuses(shop):
    return [status for _, status, _ in shop.on_target(RUNS)]


def outcome_of(process):
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return told.strip()


@contextmanager
def locked(url, *tables):
    """Lock tables, so that their readers and writers wait."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"lock table {', '.join(tables)} in access exclusive mode")
        yield


def wait_for(wait_until, number, read, kind="relation"):
    wait_until(lambda: read(WAITERS, kind) == [(number,)])


def assert_equal_sides(shop):
    for name in KEYS:
        source, raw = shop.rows(name)
        assert source == raw, name


class Build:
    """What dbt does with raw: reads what runs above its note have brought, and notes the newest run that had ended."""

    def __init__(self, shop):
        self.shop = shop
        self.noted = 0
        self.rows = {name: {} for name in KEYS}

    def __call__(self):
        ((newest,),) = self.shop.on_target("select coalesce(max(run_id), 0) from etl.runs where ended_at is not null")
        for name, key in KEYS.items():
            if self.shop.on_target(f"select to_regclass('raw.{name}')") == [(None,)]:
                continue
            columns = f"{key}, note, updated_at, _etl_deleted_at"
            found = self.shop.on_target(f"select {columns} from raw.{name} where _etl_run_id > %s", self.noted)
            self.rows[name] |= {row[0]: row for row in found}
        self.noted = newest

    def assert_it_lost_nothing(self):
        self()
        for name, key in KEYS.items():
            found = self.shop.on_target(f"select {key}, note, updated_at, _etl_deleted_at from raw.{name}")
            assert self.rows[name] == {row[0]: row for row in found}, name


# ---------------------------------------------------------------------------------------------------------------------
# One run, several processes


def test_tables_of_concurrent_processes_belong_to_one_run(shop, wait_until):
    run = begin(shop, "pipeline, run 7")
    with locked(shop.source_url, "items", "orders"):
        workers = [start(shop, run, name) for name in ("items", "orders")]
        wait_for(wait_until, 2, shop.on_source)
        assert len(shop.on_target(SHARED_HOLDERS)) == 2
        assert shop.on_target(RUNS) == [(1, "running", "pipeline, run 7")]
    told = [outcome_of(worker) for worker in workers]
    replicate(shop, run, "customers")
    ended = end(shop, run)

    assert told == ["1 succeeded None"] * 2
    assert shop.on_target(TABLE_RUNS, 1) == [(name, "succeeded") for name in sorted(KEYS)]
    assert shop.on_target("select distinct _etl_run_id from raw.items") == [(1,)]
    assert ended.failed_tables == ()
    assert shop.on_target(RUNS) == [(1, "succeeded", "pipeline, run 7"), (2, "succeeded", None)]
    assert_equal_sides(shop)


def test_run_does_not_end_while_one_of_its_processes_runs(shop, wait_until):
    run = begin(shop)
    with locked(shop.source_url, "items"):
        worker = start(shop, run, "items")
        wait_for(wait_until, 1, shop.on_source)
        ((pid,),) = shop.on_target(SHARED_HOLDERS)
        with pytest.raises(LockHeldError, match=f"another run is in progress .* .pid {pid}, .*; waited 0.2 s"):
            end(shop, run, lock_wait_seconds=0.2)
        assert runs.is_running(shop.target, run.run_id)
    outcome_of(worker)


def test_manual_run_waits_for_a_busy_table_and_names_the_holder(shop, wait_until):
    run = begin(shop)
    with locked(shop.source_url, "items"):
        worker = start(shop, run, "items")
        wait_for(wait_until, 1, shop.on_source)
        ((pid,),) = shop.on_target(SHARED_HOLDERS)
        refused = shop.command("run", ETL_LOCK_WAIT_SECONDS="1")
        waiting = start_by_hand(shop)
        wait_for(wait_until, 1, shop.on_target, "advisory")
        assert shop.on_target(RUNS) == [(1, "running", "a test")]
    told = outcome_of(worker)
    waiting.communicate(timeout=60)

    assert {"refused": refused.returncode, "waiting": waiting.returncode} == {"refused": 3, "waiting": 0}
    assert f"another run is in progress on this target (pid {pid}, " in refused.stderr
    assert told == "1 succeeded None"
    assert shop.on_target(RUNS) == [(1, "died", "a test"), (2, "succeeded", None)]
    assert shop.on_target("select ended_at is not null, error from etl.runs where run_id = 1") == [
        (True, "another run began before this one had ended")
    ]


def test_table_waits_for_a_manual_run(shop, wait_until):
    run = begin(shop)
    with locked(shop.source_url, "items"):
        by_hand = subprocess.Popen(
            [sys.executable, "-m", "etl", "run"], env=shop.environment, stderr=subprocess.DEVNULL
        )
        wait_for(wait_until, 1, shop.on_source)
        with pytest.raises(LockHeldError):
            replicate(shop, run, "orders", lock_wait_seconds=0.2)
    by_hand.communicate(timeout=60)

    assert by_hand.returncode == 0


def test_tables_left_after_a_manual_run_get_their_own_runs(shop):
    build = Build(shop)
    run = begin(shop)
    replicate(shop, run, "items", observe=lambda _: build())
    build()
    by_hand = shop.command("run")
    assert by_hand.returncode == 0
    assert "note: run 1 of a test, begun at " in by_hand.stderr
    build()
    shop.on_source("update orders set note = 'late', updated_at = clock_timestamp() where order_id <= 5")
    alone = replicate(shop, run, "orders", observe=lambda _: build())
    replicate(shop, run, "customers")
    ended = end(shop, run)

    assert alone.run_id == 3
    assert alone.tables[0].rows_updated == 5
    assert ended.failed_tables == ()
    assert statuses(shop) == [
        "died",
        "succeeded",
        "succeeded",
        "succeeded",
        "succeeded",
    ]
    assert_equal_sides(shop)
    build.assert_it_lost_nothing()


def test_table_repeated_after_the_end_gets_its_own_run(shop):
    run = begin(shop)
    for name in run.table_names:
        replicate(shop, run, name)
    end(shop, run)
    shop.on_source("update items set note = 'late', updated_at = clock_timestamp() where item_id = 1")
    again = replicate(shop, run, "items")

    assert again.run_id == 3
    assert again.tables[0].rows_updated == 1
    assert statuses(shop) == ["succeeded"] * 3


# ---------------------------------------------------------------------------------------------------------------------
# Processes that die


@pytest.mark.parametrize("side", ["source", "target"])
def test_table_with_a_killed_process_is_retried_in_the_same_run(shop, wait_until, side):
    shop.run()
    run = begin(shop)
    shop.on_source("update items set note = 'new', updated_at = clock_timestamp()")
    place = {
        "source": (shop.source_url, "items", shop.on_source),
        "target": (shop.target_url, "raw.items", shop.on_target),
    }
    url, table, read = place[side]
    with locked(url, table):
        worker = start(shop, run, "items")
        wait_for(wait_until, 1, read)
        worker.kill()
        worker.communicate(timeout=60)
        replicate(shop, run, "orders")  # others are not held up
    retried = replicate(shop, run, "items", lock_wait_seconds=10)
    replicate(shop, run, "customers")
    end(shop, run)

    assert retried.run_id == run.run_id
    assert pick(retried.tables[0], "status", "rows_updated") == ("succeeded", 120)
    assert shop.on_target(TABLE_RUNS, run.run_id) == [(name, "succeeded") for name in sorted(KEYS)]
    assert_equal_sides(shop)


def test_writer_without_its_run_lock_still_guards_its_table(shop, wait_until):
    """Its machine stands still, so it does not end: another try has to wait for the session that writes."""
    shop.run()
    run = begin(shop)
    shop.on_source("update items set note = 'new', updated_at = clock_timestamp()")
    with locked(shop.target_url, "raw.items"):
        worker = start(shop, run, "items", ETL_MAX_ATTEMPTS="1")
        wait_for(wait_until, 1, shop.on_target)
        ((pid,),) = shop.on_target(SHARED_HOLDERS)
        worker.send_signal(signal.SIGSTOP)
        shop.on_target("select pg_terminate_backend(%s)", pid)
        wait_until(lambda: shop.on_target(SHARED_HOLDERS) == [])
        with pytest.raises(LockHeldError, match=r"another process of this run is working on items .pid "):
            replicate(shop, run, "items", lock_wait_seconds=0.3)
        assert replicate(shop, run, "orders").tables[0].status == "succeeded"
    worker.send_signal(signal.SIGCONT)
    worker.communicate(timeout=60)
    retried = replicate(shop, run, "items", lock_wait_seconds=10)

    assert retried.run_id == run.run_id
    assert retried.tables[0].status == "succeeded"
    assert_equal_sides(shop)


def test_writer_without_its_run_lock_stops_when_the_run_ends(shop, wait_until):
    """Its machine stands still amid the first of two batches when the end of the run comes; none is written."""
    shop.configure({"defaults": {"batch_rows": 60}})
    shop.run()
    run = begin(shop)
    shop.on_source("update items set note = 'new', updated_at = clock_timestamp()")
    tables = shop.write_tables("defaults: {batch_rows: 60}")
    with locked(shop.source_url, "items"):
        worker = start(shop, run, "items", ETL_MAX_ATTEMPTS="1", ETL_TABLES=str(tables))
        wait_for(wait_until, 1, shop.on_source)
        ((pid,),) = shop.on_target(SHARED_HOLDERS)
        worker.send_signal(signal.SIGSTOP)
        shop.on_target("select pg_terminate_backend(%s)", pid)
        wait_until(lambda: shop.on_target(SHARED_HOLDERS) == [])
        end(shop, run, lock_timeout_seconds=0.2, max_attempts=1)  # it reads the held table too, in vain
    worker.send_signal(signal.SIGCONT)
    _, errors = worker.communicate(timeout=60)

    assert worker.returncode == 1
    assert shop.on_target("select count(*) from raw.items where note = 'new'") == [(0,)]
    assert shop.on_target("select count(*) from etl.table_runs where status = 'running'") == [(0,)]
    assert "the run has lost its lock" in errors


def test_failure_outside_tables_is_recorded_in_the_open_run(shop, free_port):
    run = begin(shop)
    away = f"postgresql://nobody@127.0.0.1:{free_port()}/shop"
    with pytest.raises(EtlError, match="cannot connect to the source"):
        replicate(shop, run, "items", source_url=DatabaseUrl(away))

    assert shop.on_target("select status, error like 'cannot connect to the source%%' from etl.table_runs") == [
        ("failed", True)
    ]
    assert runs.is_running(shop.target, run.run_id)
    assert replicate(shop, run, "items").run_id == run.run_id
    assert shop.on_target("select status from etl.table_runs") == [("succeeded",)]


# ---------------------------------------------------------------------------------------------------------------------
# Runs that meet


def test_a_run_that_was_abandoned_is_marked_by_the_next(shop):
    begin(shop, "first")
    begin(shop, "second")
    assert shop.on_target(RUNS) == [(1, "died", "first"), (2, "running", "second")]
    shop.run()

    assert statuses(shop) == ["died", "died", "succeeded"]


def test_two_shared_runs_never_mix(shop):
    """The second begins between two tables of the first, whose other tables then wait for its end."""
    build = Build(shop)
    first = begin(shop, "first")
    replicate(shop, first, "items")
    second = begin(shop, "second")
    for step in (lambda: replicate(shop, first, "orders"), lambda: end(shop, first)):
        with pytest.raises(LockHeldError, match=r"run 2 of second, begun at .*, has not ended: try again"):
            step()
    for name in second.table_names:
        replicate(shop, second, name, observe=lambda _: build())
    end(shop, second)
    build()
    late = replicate(shop, first, "orders")
    assert end(shop, first).failed_tables == ()

    assert statuses(shop)[:2] == ["died", "succeeded"]
    assert late.run_id > second.run_id
    assert_equal_sides(shop)
    build.assert_it_lost_nothing()


def test_no_second_run_starts_during_a_table_of_the_first(shop, wait_until):
    run = begin(shop)
    with locked(shop.source_url, "items"):
        worker = start(shop, run, "items")
        wait_for(wait_until, 1, shop.on_source)
        with pytest.raises(LockHeldError):
            begin(shop, lock_wait_seconds=0.2)
    outcome_of(worker)

    assert shop.on_target(RUNS) == [(1, "running", "a test")]


# ---------------------------------------------------------------------------------------------------------------------
# Failed tables, order and parents


def test_run_with_a_failed_table_fails_and_the_others_are_done(shop):
    shop.run()
    shop.on_source("update items set note = 'new', updated_at = clock_timestamp()")
    shop.on_target("alter table raw.customers drop column _etl_synced_at")
    run = begin(shop)
    results = {name: replicate(shop, run, name).tables[0] for name in run.table_names}
    ended = end(shop, run)

    assert {name: result.status for name, result in results.items()} == {
        "items": "succeeded",
        "orders": "succeeded",
        "customers": "failed",
    }
    assert ended.failed_tables == ("customers",)
    assert shop.on_target("select status, error from etl.runs where run_id = %s", run.run_id) == [
        ("failed", "failed: customers")
    ]
    source, raw = shop.rows("items")
    assert source == raw
    replicate(shop, run, "customers", options=RunOptions(full_refresh=True))
    assert end(shop, run).failed_tables == ()


def test_child_tables_go_before_their_parents(shop):
    shop.on_source(
        """
        create table parts (part_id int, region int, item_id int references items, primary key (part_id, region))
            partition by list (region);
        create table parts_1 partition of parts for values in (1);
        create table parts_2 partition of parts for values in (2);
        create table repairs (repair_id int primary key, part_id int, region int,
            foreign key (part_id, region) references parts);
        create table staff (staff_id int primary key, chief_id int references staff, team_id int);
        create table teams (team_id int primary key, lead_id int references staff);
        alter table staff add foreign key (team_id) references teams;
        create table keyless (note text)
        """
    )
    shop.configure({"tables": {"keyless": {}}})
    run = begin(shop)

    place = {name: number for number, name in enumerate(run.table_names)}
    assert sorted(place) == sorted([*KEYS, "keyless", "parts", "repairs", "staff", "teams"])
    assert place["repairs"] < place["parts"] < place["items"] < place["orders"] < place["customers"]
    messages = [event.message for event in shop.events if event.kind == "notice"]
    assert "staff, teams refer to each other: at the end of the run all are brought to one snapshot" in messages
    assert "has no primary key" in replicate(shop, run, "keyless").tables[0].error


def test_a_foreign_key_of_one_partition_counts_for_its_table(shop):
    shop.on_source(
        """
        create table events (event_id int, region int, order_id int, primary key (event_id, region))
            partition by list (region);
        create table events_1 partition of events for values in (1);
        alter table events_1 add foreign key (order_id) references orders
        """
    )
    names = begin(shop).table_names

    assert names.index("events") < names.index("orders")


def test_no_row_lacks_its_parent_after_the_run_ends(shop):
    run = begin(shop)
    for name, growth in (
        ("customers", "insert into customers values (31)"),
        ("orders", "insert into orders values (61, 31); insert into customers values (32)"),
        ("items", "insert into orders values (62, 32)"),
    ):
        replicate(shop, run, name)
        shop.on_source(growth)
    shop.on_source("insert into items values (121, 61), (122, 62)")
    replicate(shop, run, "orders")  # such as after its process was killed
    replicate(shop, run, "items")
    assert shop.on_target(ORPHANS) == [(0, 2)]
    end(shop, run)

    assert shop.on_target(ORPHANS) == [(0, 0)]


def test_transaction_across_tables_is_complete_after_the_run(shop):
    shop.run()
    run = begin(shop)
    for name in run.table_names:
        replicate(shop, run, name)
        shop.on_source(f"update {name} set note = 'early', updated_at = clock_timestamp() where {KEYS[name]} < 9")
    shop.on_source(
        """
        insert into orders values (61, 1); insert into items values (121, 61);
        update orders set note = 'paid', updated_at = clock_timestamp() where order_id = 2;
        update items set note = 'paid', updated_at = clock_timestamp() where order_id = 2;
        delete from items where order_id = 3; delete from orders where order_id = 3;
        select pg_stat_force_next_flush()
        """
    )
    end(shop, run)

    for name, key in KEYS.items():
        live = shop.on_target(f"select {key}, note from raw.{name} where _etl_deleted_at is null order by 1")
        assert live == shop.on_source(f"select {key}, note from {name} order by 1"), name


def test_tables_dropped_on_the_source_are_reported_once(shop):
    shop.run()
    shop.on_source("drop table items")
    for _ in range(2):
        run = begin(shop)
        end(shop, run)

    messages = [event.message for event in shop.events if "on the source any more" in event.message]
    assert run.table_names == ("orders", "customers")
    assert len(messages) == 1
    assert messages[0].startswith("there is no table public.items on the source any more: it was dropped;")


# ---------------------------------------------------------------------------------------------------------------------
# Whatever comes between


@pytest.mark.has_long_form
def test_build_between_tables_and_batches_loses_no_row(shop, is_long):
    """Runs begin, are given up, end and are met by others at random, and builds read amid the batches of a table."""
    seeds = range(200 if is_long else 12)
    shop.configure({"defaults": {"batch_rows": 25}})
    shop.settings = shop.settings_with(lock_wait_seconds=0.05)  # one thread plays all: who holds a lock lets none go
    build = Build(shop)
    refused = 0
    for seed in seeds:
        refused += play(shop, build, random.Random(seed))
    for name in begin(shop).table_names:
        shop.run_one(name)
    end(shop, begin(shop))

    assert_equal_sides(shop)
    assert shop.on_target(ORPHANS) == [(0, 0)]
    build.assert_it_lost_nothing()
    assert set(statuses(shop)) >= {"died", "succeeded"}
    assert refused, "expected that some tries are refused, found none"


def play(shop, build, chance):
    """Play one history; return how often a run had to wait for another."""
    runs, refused = [begin(shop, "first")], 0
    for _ in range(12):
        table = chance.choice(list(KEYS))
        rows = sorted(chance.sample(range(1, 31), 5))
        shop.on_source(
            f"update {table} set note = md5(note), updated_at = clock_timestamp() where {KEYS[table]} = any (%s)", rows
        )
        run = chance.choice(runs)
        step = chance.choice(["replicate"] * 6 + ["end", "begin", "by hand", "build"])
        try:
            if step == "replicate":
                replicate(shop, run, table, observe=lambda _: chance.random() < 0.5 and build())
            elif step == "end":
                end(shop, run)
            elif step == "begin":
                runs.append(begin(shop, f"number {len(runs)}"))
            elif step == "by hand":
                shop.run(*chance.choice([(), (table,)]))
            else:
                build()
        except LockHeldError:
            refused += 1
    return refused
