"""One build at a time works on a warehouse, in one process or in parts."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest

from etl.errors import LockHeldError
from etl.transform import lock
from etl.transform.lock import OPEN_BUILD, Build, ClosedBuildError, build_lock, close_build, open_build, part_lock

HASTY = {"ETL_LOCK_WAIT_SECONDS": "0.2"}
PATIENT = {"ETL_LOCK_WAIT_SECONDS": "30"}
BUILD = Build(name="pipeline 1", owner="pipeline")
NEXT_BUILD = Build(name="pipeline 2", owner="pipeline")
OTHER_BUILD = Build(name="other 1", owner="other")
HOURS_AGO = f"update {OPEN_BUILD} set seen_at = now() - interval '2 hours' returning 1"
BUILDERS = 4
BUILDS_EACH = 8


def ask(url, statement, options=None):
    with closing(psycopg2.connect(url, options=options)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def change(url, statement):
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


def begin(url, build):
    with open_build(HASTY, url, build):
        pass


def wait_for_a_waiter(url):
    deadline = time.monotonic() + 20
    condition = (
        "select count(*) from pg_locks where locktype = 'advisory' and not granted "
        "and database = (select oid from pg_database where datname = current_database())"
    )
    while ask(url, condition) == [(0,)]:
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.02)


def test_second_build_waits_and_is_rejected(target_url):
    refusal = r"another dbt command is running on this warehouse; waited 0\.2 s"
    with build_lock(HASTY, target_url), pytest.raises(LockHeldError, match=refusal):
        build_lock(HASTY, target_url).__enter__()
    with build_lock(HASTY, target_url):
        pass


def test_build_sessions_detect_a_lost_client(target_url):
    with build_lock(HASTY, target_url) as variables:
        found = ask(target_url, "show client_connection_check_interval", variables["PGOPTIONS"])

    assert found == [("500ms",)]


def test_the_lock_keeps_no_row_version(target_url):
    holder = "select state, backend_xmin from pg_stat_activity where application_name = 'tidemark' and datname = %s"
    name = target_url.rpartition("/")[2]
    with build_lock(HASTY, target_url):
        found = ask(target_url, holder.replace("%s", f"'{name}'"))

    assert found == [("idle in transaction", None)]


def test_parts_of_a_build_run_at_once_but_never_the_same_one(target_url):
    begin(target_url, BUILD)
    with part_lock(HASTY, target_url, BUILD, "model.a"), part_lock(HASTY, target_url, BUILD, "model.b") as variables:
        with pytest.raises(LockHeldError, match="another dbt command is running"):
            part_lock(HASTY, target_url, BUILD, "model.a").__enter__()
        assert "PGOPTIONS" in variables
    with part_lock(HASTY, target_url, BUILD, "model.a"):
        pass


def test_open_build_blocks_others_between_its_parts(target_url):
    begin(target_url, BUILD)
    with pytest.raises(LockHeldError, match=r"the build pipeline 1 is open on this warehouse; waited 0\.2 s"):
        build_lock(HASTY, target_url).__enter__()
    with pytest.raises(LockHeldError, match="the build pipeline 1 is open"):
        open_build(HASTY, target_url, OTHER_BUILD).__enter__()
    with part_lock(HASTY, target_url, BUILD, "model.a"):
        pass
    assert close_build(HASTY, target_url, BUILD)
    with build_lock(HASTY, target_url):
        pass


def test_waiting_build_starts_once_the_open_one_is_closed(target_url):
    begin(target_url, BUILD)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: build_lock(PATIENT, target_url).__enter__())
        time.sleep(lock.POLL_SECONDS)
        assert not waiting.done()
        assert close_build(HASTY, target_url, BUILD)
        waiting.result(timeout=20)


def test_part_of_a_build_that_is_not_open_is_rejected(target_url):
    with pytest.raises(
        ClosedBuildError, match="expected the build pipeline 1 to be open on this warehouse, found none"
    ):
        part_lock(HASTY, target_url, BUILD, "model.a").__enter__()
    begin(target_url, BUILD)
    close_build(HASTY, target_url, BUILD)
    with pytest.raises(ClosedBuildError, match="found none: "):
        part_lock(HASTY, target_url, BUILD, "model.a").__enter__()
    assert not close_build(HASTY, target_url, BUILD)


def test_new_build_of_the_same_owner_replaces_the_previous_one(target_url):
    begin(target_url, BUILD)
    with part_lock(HASTY, target_url, BUILD, "model.a"), pytest.raises(LockHeldError, match="another dbt command"):
        open_build(HASTY, target_url, NEXT_BUILD).__enter__()
    begin(target_url, NEXT_BUILD)
    with pytest.raises(ClosedBuildError, match="found pipeline 2: "):
        part_lock(HASTY, target_url, BUILD, "model.b").__enter__()
    assert not close_build(HASTY, target_url, BUILD)
    with part_lock(HASTY, target_url, NEXT_BUILD, "model.b"):
        pass


def test_build_can_be_reopened_by_a_cleared_task(target_url):
    begin(target_url, BUILD)
    begin(target_url, BUILD)
    with part_lock(HASTY, target_url, BUILD, "model.a"):
        pass
    assert close_build(HASTY, target_url, BUILD)


def test_failed_opening_leaves_no_open_build(target_url):
    with pytest.raises(ZeroDivisionError), open_build(HASTY, target_url, BUILD):
        raise ZeroDivisionError
    with build_lock(HASTY, target_url):
        pass


def test_idle_build_is_closed_after_an_hour(target_url):
    begin(target_url, BUILD)
    change(target_url, HOURS_AGO)
    with build_lock(HASTY, target_url), pytest.raises(LockHeldError):
        part_lock(HASTY, target_url, BUILD, "model.a").__enter__()
    with pytest.raises(ClosedBuildError, match="found none: "):
        part_lock(HASTY, target_url, BUILD, "model.a").__enter__()


def test_long_part_does_not_make_its_build_abandoned(target_url):
    begin(target_url, BUILD)
    with ThreadPoolExecutor() as pool:
        with part_lock(HASTY, target_url, BUILD, "model.a"):
            change(target_url, HOURS_AGO)
            waiting = pool.submit(lambda: build_lock({"ETL_LOCK_WAIT_SECONDS": "5"}, target_url).__enter__())
            wait_for_a_waiter(target_url)
        with pytest.raises(LockHeldError, match="the build pipeline 1 is open"):
            waiting.result(timeout=20)
    with part_lock(HASTY, target_url, BUILD, "model.b"):
        pass


def test_a_part_keeps_no_row_version(target_url):
    holder = "select state, backend_xmin, backend_xid from pg_stat_activity where application_name = 'tidemark'"
    begin(target_url, BUILD)
    with part_lock(HASTY, target_url, BUILD, "model.a"):
        found = ask(target_url, f"{holder} and datname = current_database()")

    assert found == [("idle in transaction", None, None)]


def test_concurrent_builds_never_mix_however_they_end(target_url, monkeypatch):
    """Some end, some are abandoned and come back too late; a part says so, and none works after another has begun."""
    monkeypatch.setattr(lock, "ABANDONED_AFTER_SECONDS", 0.3)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    told = []  # each part as it begins and as it ends, in the order of time: appending is atomic

    def build_part(build, part):
        with part_lock(PATIENT, target_url, build, part):
            told.append((build.name, part, "begins"))
            time.sleep(0.01)
            told.append((build.name, part, "ends"))

    def build_often(number):
        choose = random.Random(number)
        refused = 0
        for count in range(BUILDS_EACH):
            build = Build(name=f"{number} {count}", owner=str(number))
            with open_build(PATIENT, target_url, build):
                told.append((build.name, "", "opens"))
            try:
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(build_part, [build] * 4, "abcd"))
                if choose.random() < 0.5:
                    time.sleep(choose.choice([0.1, 0.6]))  # its worker is lost, and comes back
                    build_part(build, "e")
                close_build(PATIENT, target_url, build)
            except ClosedBuildError:
                refused += 1
        return refused

    with ThreadPoolExecutor(BUILDERS) as pool:
        refused = sum(pool.map(build_often, range(BUILDERS)))

    order = [name for name, *_ in told]
    runs = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert len(set(runs)) == BUILDERS * BUILDS_EACH
    assert len(runs) == len(set(runs))  # who has been followed by another build never works again
    assert 0 < refused < BUILDERS * BUILDS_EACH
