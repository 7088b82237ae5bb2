"""Airflow as `make airflow` starts it: runs by its scheduler, cleared and killed tasks, the end of all processes."""

import json
import os
import signal
from pathlib import Path

import psycopg2
import pytest

from tests.conftest import has_airflow, open_webhook
from tests.integration.dbt.built_shop import WITHOUT_TESTS, is_waited_for, locked

from .airflow_api import (
    DAG_ID,
    READERS_THAT_WAIT,
    SESSIONS_OF_READERS,
    TABLES,
    TASKS,
    log_in_as_told,
    marts,
    query,
    wait_until,
)
from .browser import find_browser, open_page
from .conftest import open_machine

pytestmark = pytest.mark.skipif(not has_airflow(), reason="Airflow is not installed: make test-airflow")
MAPPED_TASKS = ("begin_run", "replicate", "end_run")
MAX_PICTURE_BYTES = 200_000
SETTINGS = {
    "PIPELINE_SCHEDULE": "0 0 29 2 *",  # seldom due: none but the runs of these tests
    "PIPELINE_RETRY_SECONDS": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",  # then a worker that is silent is given up; 300
    "ETL_LOCK_TIMEOUT_SECONDS": "60",  # a task waits for the tables that a test holds
}
# For all but the picture: the rules are checked in the integration tests of the DAGs.
SHORT_RUN = {"PIPELINE_DEADLINE_MINUTES": "0.1", **WITHOUT_TESTS}
# The page of a run lists its tasks with their states, one a line.
IS_GREEN = """
    {names}.every(name => [...document.querySelectorAll("tbody tr")].some(
        line => line.innerText.includes(name) && line.innerText.includes("Success")))
"""


@pytest.fixture(scope="module")
def messages():
    """The URL of a webhook and what was posted to it."""
    with open_webhook() as opened:
        yield opened


@pytest.fixture(scope="module")
def machine(free_port):
    with open_machine(free_port) as made:
        yield made


@pytest.fixture(scope="module")
def kept_picture(request):
    """Where a picture of Airflow is to be kept; then with the usual deadline, so that it shows a usual run."""
    return request.config.getoption("--picture")


@pytest.fixture(scope="module")
def api(machine, messages, kept_picture):
    settings = SETTINGS if kept_picture else SETTINGS | SHORT_RUN
    machine.succeed("seed", "--scale", "0.1")
    return log_in_as_told(machine.succeed("airflow", ALERT_WEBHOOK_URL=messages[0], **settings))


@pytest.fixture(scope="module")
def ended_run(api):
    """The id of a run that has succeeded."""
    run_id = api.trigger()
    api.wait_for_success(run_id)
    return run_id


def processes_of(machine, title=None):
    """Return the ids of processes at work in the copy, all or those with a title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_inside = (folder / "cwd").readlink().is_relative_to(machine.folder)
            text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if is_inside and (title is None or text.startswith(title)):
            found.append(int(folder.name))
    return found


def kill(machine, title, *, and_worker=False):
    """End the process of a task as a machine does that has no memory left, and the worker that watches over it."""
    (pid,) = processes_of(machine, title)
    worker = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for victim in [worker, pid] if and_worker else [pid]:
        os.kill(victim, signal.SIGKILL)


def most_at_once(tasks):
    """Return how many tasks were at work at the same time, at most."""
    spans = [(task["start_date"], task["end_date"]) for task in tasks]  # all in UTC, in one format
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def test_run_fills_the_marts_and_reports_its_assets(machine, api, ended_run):
    assert marts(machine)["fct_orders"][0] > 1_000
    assert api.assets_of(ended_run) == ["marts", "raw"]


@pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium or Chrome is found (apt-get install chromium): that a person can log in and see a green run "
    "in Airflow's pages is not tested",
)
def test_user_logs_in_and_sees_a_successful_run(api, ended_run, tmp_path, kept_picture):
    with open_page(find_browser(), tmp_path / "profile") as page:
        page.open(f"{api.address}/dags/{DAG_ID}/runs/{ended_run}")
        page.type("input[name=username]", api.user)
        page.type("input[name=password]", api.password)
        page.press_enter()
        page.wait_for(f"location.pathname.endsWith({json.dumps(ended_run)})", "the page of the run, after the login")
        page.wait_for(IS_GREEN.replace("{names}", json.dumps(TASKS)), "all tasks of the run in green")
        picture = page.picture()

    assert picture.startswith(b"\x89PNG")
    assert 30_000 < len(picture) < MAX_PICTURE_BYTES  # a blank page is smaller
    if kept_picture:
        kept_picture.write_bytes(picture)


def test_missed_deadline_is_reported_while_the_run_continues(messages, ended_run, kept_picture):
    if kept_picture:
        pytest.skip("with the usual deadline, for the picture, no run is late: that a late one is told is not tested")
    late = [message for message in messages[1] if ended_run in message]

    assert late == [f"Tidemark: {DAG_ID}, run {ended_run} is late\nit has not ended within 0:00:06"]


@pytest.mark.has_long_form
def test_cleared_tasks_produce_the_same_marts(machine, api, ended_run, is_long):
    filled = marts(machine)
    api.clear(ended_run, "dbt_run")
    assert api.wait_for_success(ended_run) == {name: 2 if name == "dbt_run" else 1 for name in TASKS}
    assert marts(machine) == filled
    if not is_long:  # in short: test_killed_tasks_are_retried_and_produce_the_same_marts
        return
    api.clear(ended_run, *TASKS)
    assert api.wait_for_success(ended_run) == {name: 3 if name == "dbt_run" else 2 for name in TASKS}
    assert marts(machine) == filled


@pytest.mark.usefixtures("ended_run")
def test_killed_tasks_are_retried_and_produce_the_same_marts(machine, api):
    before = marts(machine)
    machine.succeed("simulate", "--seconds", "5", "--rate", "80")
    source, target = machine.urls()["source"], machine.urls()["target"]
    with locked(source, "orders"):
        run_id = api.trigger()
        wait_until(lambda: query(source, f"select {is_waited_for('orders')}") == [(True,)], "the task to read orders")
        kill(machine, api.title_of(run_id, "extract_and_load"))
    wait_until(lambda: api.states(run_id)["extract_and_load"] == "success", "the second try")
    with locked(target, "raw.orders"):
        wait_until(lambda: query(target, f"select {is_waited_for('raw.orders')}") == [(True,)], "dbt to read raw")
        kill(machine, api.title_of(run_id, "dbt_run"), and_worker=True)

    assert api.wait_for_success(run_id) == {
        "extract_and_load": 2,
        "dbt_run": 2,
        "dbt_test": 1,
        "freshness": 1,
        "docs": 1,
    }
    incremental = marts(machine)
    machine.succeed("dbt-run", "--full-refresh")
    assert marts(machine) == incremental != before
    machine.succeed("verify")


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long", "ended_run")  # in short: test_dag_files, pool slots; a kill, above
def test_pool_limits_parallel_tables_and_killed_one_is_retried(machine, api):
    before = marts(machine)
    machine.succeed("simulate", "--seconds", "5", "--rate", "80")
    source = machine.urls()["source"]
    with locked(source, ", ".join(TABLES)):
        run_id = api.trigger(mapped_tables=True)
        wait_until(lambda: query(source, READERS_THAT_WAIT) == [(2,)], "two tables to be read")
        wait_until(lambda: api.pool() == {"occupied": 4, "scheduled": 12}, "six tables to wait for a place in the pool")
        assert query(source, SESSIONS_OF_READERS) == [(4,)]
        kill(machine, api.title_of(run_id, TABLES[0]))
    tries = api.wait_for_success(run_id)
    tables = api.tables(run_id)

    assert set(tries) == {*TASKS, *MAPPED_TASKS} - {"extract_and_load"}
    assert sorted(tables) == sorted(TABLES)
    assert {name: task["try_number"] for name, task in tables.items() if task["try_number"] > 1} == {TABLES[0]: 2}
    assert {(task["pool"], task["pool_slots"]) for task in tables.values()} == {("tidemark_source", 2)}
    assert most_at_once(tables.values()) <= 2  # of the last tries: two at once were seen above, before the kill
    assert api.assets_of(run_id) == ["marts", "raw"]
    incremental = marts(machine)
    machine.succeed("dbt-run", "--full-refresh")
    assert marts(machine) == incremental != before
    machine.succeed("verify")


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long", "ended_run")  # in short: test_shared_runs, repeated tables
def test_cleared_table_is_replicated_again_within_its_run(machine, api):
    run_id = api.trigger(mapped_tables=True)
    api.wait_for_success(run_id)
    filled, index = marts(machine), api.tables(run_id)["orders"]["map_index"]
    api.clear(run_id, ["replicate", index])
    tries = api.wait_for_success(run_id)

    assert {name: task["try_number"] for name, task in api.tables(run_id).items()} == {
        name: 2 if name == "orders" else 1 for name in TABLES
    }
    assert (tries["begin_run"], tries["end_run"], tries["dbt_run"]) == (2, 2, 1)
    assert marts(machine) == filled
    machine.succeed("verify")


@pytest.mark.usefixtures("ended_run")
def test_no_password_is_in_what_airflow_has_logged(machine):
    home = machine.ask(
        "import json; from deploy.local.airflow_server import *; print(json.dumps(str(find_airflow().home)))"
    )
    logs = {path: path.read_text(errors="replace") for path in Path(home).rglob("*.log")}
    names = ("SOURCE_DATABASE_URL", "TARGET_DATABASE_URL", "TRANSFORMER_DATABASE_URL")
    urls = machine.urls()
    passwords = [psycopg2.extensions.parse_dsn(urls[name])["password"] for name in names]

    assert "orders: watermark " in "".join(logs.values())
    assert [path for path, text in logs.items() if any(password in text for password in passwords)] == []


@pytest.mark.usefixtures("ended_run")
def test_no_process_is_left_behind(machine, api):
    run_id = api.trigger()
    wait_until(lambda: api.states(run_id).get("dbt_run") == "running", "dbt to be at work")

    assert len(processes_of(machine)) > 8
    assert "stopped" in machine.succeed("airflow-down")
    assert processes_of(machine) == []
    assert "was not running" in machine.succeed("airflow-down")
