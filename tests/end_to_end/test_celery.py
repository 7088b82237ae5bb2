"""The mapped tables on two workers that get their tasks through Redis, one of which is lost."""

import pytest

from tests.conftest import has_airflow
from tests.integration.dbt.built_shop import WITHOUT_TESTS, locked

from .airflow_api import READERS_THAT_WAIT, SESSIONS_OF_READERS, TABLES, marts, query, wait_until
from .celery_cluster import WORKERS, find_redis, open_cluster

pytestmark = [
    pytest.mark.skipif(not has_airflow(), reason="Airflow is not installed: make test-airflow"),
    pytest.mark.skipif(
        find_redis() is None,
        reason="no redis-server is found (apt-get install redis-server): several workers are not tested",
    ),
]
SETTINGS = {
    "PIPELINE_SCHEDULE": "0 0 29 2 *",  # seldom due: none but the run of this test
    "PIPELINE_RETRY_SECONDS": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",  # then a worker that is silent is given up; 300
    "ETL_LOCK_TIMEOUT_SECONDS": "300",  # a task waits for the table that the test holds
    **WITHOUT_TESTS,
}
*OTHERS, LAST = TABLES  # others refer to the last


@pytest.fixture
def cluster(machine, tmp_path, free_port):
    machine.succeed("seed", "--scale", "0.1")
    with open_cluster(machine, tmp_path, free_port()) as opened:
        yield opened


def places(api, run_id, state):
    """Return the worker of each table whose task is in a state."""
    return {name: task["hostname"] for name, task in api.tables(run_id).items() if task["state"] == state}


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_airflow, a killed task
def test_one_worker_continues_alone_when_the_other_is_lost(machine, cluster):
    api = cluster.start(**SETTINGS)
    source = machine.urls()["source"]
    api.switch_on()
    with locked(source, LAST):
        with locked(source, ", ".join(OTHERS)):
            run_id = api.trigger(mapped_tables=True)
            wait_until(lambda: query(source, READERS_THAT_WAIT) == [(2,)], "a table to be read by each worker")
            assert query(source, SESSIONS_OF_READERS) == [(4,)]
            assert sorted(places(api, run_id, "running").values()) == sorted(WORKERS)
        wait_until(lambda: len(places(api, run_id, "success")) == 7, "all tables but the last")
        done = places(api, run_id, "success")
        wait_until(lambda: query(source, READERS_THAT_WAIT) == [(1,)], "the last table to be read")
        ((name, lost),) = places(api, run_id, "running").items()
        assert name == LAST
        cluster.kill(lost)
    tries = api.wait_for_success(run_id)
    tables = api.tables(run_id)

    assert set(done.values()) == set(WORKERS)
    assert {table: task["try_number"] for table, task in tables.items() if task["try_number"] > 1} == {LAST: 2}
    assert {tables[LAST]["hostname"], lost} == set(WORKERS)
    assert {"begin_run", "end_run", "dbt_run", "dbt_test", "docs"} < set(tries)
    filled = marts(machine)
    assert filled["fct_orders"][0] > 1_000
    machine.succeed("verify")
    machine.succeed("dbt-run", "--full-refresh")
    assert marts(machine) == filled
