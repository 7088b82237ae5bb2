"""Containers as `make` starts them: an image, databases, the pipeline, Airflow, backups, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from deploy.containers.commands import WRITERS
from tests.integration.dbt.built_shop import WITHOUT_TESTS, is_waited_for, locked, read_marts

from .airflow_api import TASKS, Api, query, wait_until
from .conftest import CHECKOUT, open_machine


def is_docker_running():
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)


pytestmark = pytest.mark.skipif(
    not is_docker_running(), reason="Docker with its compose plugin does not run here: the containers are not tested"
)
FILES = ("docker-compose.yml", "Dockerfile", ".dockerignore", "Makefile", "pyproject.toml", "README.md", "LICENSE")
SERVICE = "com.docker.compose.service"
PROFILES = ("--profile", "celery", "--profile", "simulate")
SETTINGS = {
    "PIPELINE_SCHEDULE": "0 0 29 2 *",  # seldom due: none but the runs of these tests
    "PIPELINE_RETRY_SECONDS": "2",
    "TASK_HEARTBEAT_TIMEOUT": "30",  # then a task that is silent is given up
}
WEBHOOK = "https://alerts.invalid/a-key-of-this-test"
OTHERS = ("airflow-api-server",)  # that send no alerts
WITHOUT_RULES = [argument for variable in WITHOUT_TESTS.items() for argument in ("--env", "=".join(variable))]
CELERY = {"COMPOSE_PROFILES": "celery", "AIRFLOW_EXECUTOR": "CeleryExecutor"}


class Containers:
    """The containers of one project, on a copy of the checkout."""

    def __init__(self, folder, environment, ports=()):
        self.folder = folder
        self.environment = environment
        self.ports = dict(ports)
        self.project = environment["COMPOSE_PROJECT_NAME"]

    def run(self, *command):
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def succeed(self, *command):
        finished = self.run(*command)
        assert finished.returncode == 0, f"{command}\n{finished.stdout[-8000:]}{finished.stderr[-8000:]}"
        return finished.stdout

    def make(self, target, *arguments):
        return self.succeed("make", target, f"PYTHON={sys.executable}", *arguments)

    def compose(self, *arguments):
        return self.succeed("docker", "compose", *arguments)

    def url(self, side, role="postgres"):
        name, database = {"source": ("SOURCE", "source"), "target": ("TARGET", "warehouse")}[side]
        password = (self.folder / ".secrets" / f"{side}_db.{role}").read_text()
        return f"postgresql://{role}:{password}@127.0.0.1:{self.ports[f'{name}_PORT']}/{database}"

    def marts(self):
        return read_marts(lambda statement: query(self.url("target"), statement))

    def rebuilt_marts(self):
        """Return the marts as a full refresh makes them."""
        full = "from etl.transform import project; import os; project.build_models(os.environ, ['--full-refresh'])"
        self.compose("run", "--rm", "--no-deps", "dbt", "python", "-c", full)
        return self.marts()

    def psql(self, statement):
        command = ("psql", "--username", "postgres", "--dbname", "warehouse", "--command", statement)
        return self.compose("exec", "-T", "target_db", *command)

    def secrets(self):
        """Return what may be seen nowhere: all passwords and keys."""
        texts = [path.read_text() for path in (self.folder / ".secrets").iterdir()]
        return [text.removeprefix("requirepass ") for text in texts if text]

    def inspect(self, service=""):
        """Return what Docker tells of each container, or of those of one service."""
        ids = self.compose(*PROFILES, "ps", "--all", "--quiet", *filter(None, [service])).split()
        return json.loads(self.succeed("docker", "inspect", *ids))

    def left(self, kind):
        listing = {"container": ("ps", "--all"), "network": ("network", "ls"), "volume": ("volume", "ls")}[kind]
        label = f"label=com.docker.compose.project={self.project}"
        return self.succeed("docker", *listing, "--quiet", "--filter", label).split()

    def kill(self, service, host=""):
        """End the first process of a container at once, as a lack of memory does: Docker starts it again.

        `docker kill` would not do: what it ends stays so.
        """
        killed = next(one for one in self.inspect(service) if one["Id"].startswith(host))
        rights = ("--pid=host", "--user=0", "--cap-drop=ALL", "--cap-add=KILL", "--network=none")
        kill = ("--entrypoint", "sh", self.environment["IMAGE"], "-c", f"kill -9 {killed['State']['Pid']}")
        self.succeed("docker", "run", "--rm", *rights, *kill)
        started = ("docker", "inspect", "--format", "{{.State.StartedAt}}", killed["Id"])
        wait_until(lambda: self.succeed(*started).strip() != killed["State"]["StartedAt"], f"{service} again")


def copy_files(folder):
    for name in FILES:
        shutil.copy(CHECKOUT / name, folder / name)
    shutil.copytree(CHECKOUT / "lock", folder / "lock")


@pytest.fixture(scope="module")
def machine(free_port):
    """A copy of the checkout, for servers without containers too."""
    with open_machine(free_port) as made:
        copy_files(made.folder)
        yield made


@pytest.fixture(scope="module")
def containers(machine, free_port):
    """Containers on a copy of the checkout, whose ports and settings are lines of its `.env`."""
    ports = {name: str(free_port()) for name in ("SOURCE_PORT", "TARGET_PORT", "AIRFLOW_PORT")}
    (machine.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in (SETTINGS | ports).items()))
    project = f"tidemark-test-{os.getpid()}"
    names = {"COMPOSE_PROJECT_NAME": project, "IMAGE": f"{project}:local"}
    others = {name: value for name, value in machine.environment.items() if name not in ports}
    made = Containers(machine.folder, others | names, ports)
    yield made
    made.run("make", "compose-clean", "FORCE=1", f"PYTHON={sys.executable}")
    made.run("docker", "image", "rm", "--force", names["IMAGE"])


@pytest.fixture(scope="module")
def filled(containers):
    """What `make compose-pipeline` tells."""
    return containers.make("compose-pipeline")


@pytest.fixture(scope="module")
def api(containers):
    """Airflow in containers, and all others, as `make compose-up` starts them."""
    containers.make("secrets")
    (containers.folder / ".secrets" / "alert_webhook_url").write_text(WEBHOOK)
    told = containers.make("compose-up")
    password = (containers.folder / ".secrets" / "airflow_admin").read_text()
    address = f"http://localhost:{containers.ports['AIRFLOW_PORT']}"
    assert f"Airflow: {address}  login admin" in told
    assert password not in told
    opened = Api(address, "admin", password)
    opened.switch_on()
    return opened


def test_start_without_passwords_fails_with_the_next_step(tmp_path, machine):
    shutil.copy(CHECKOUT / "docker-compose.yml", tmp_path)
    alone = Containers(tmp_path, {**machine.environment, "COMPOSE_PROJECT_NAME": f"tidemark-none-{os.getpid()}"})
    refused = alone.run("docker", "compose", "up", "--detach")

    assert refused.returncode != 0
    assert "there are no passwords yet, generate them with `make secrets`" in refused.stderr
    assert [alone.left(kind) for kind in ("container", "network", "volume")] == [[], [], []]


def test_the_file_is_accepted_with_every_profile(containers):
    containers.make("secrets")
    finished = containers.run("docker", "compose", *PROFILES, "config", "--quiet")

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_marts_equal_those_built_without_containers(machine, containers, filled):
    machine.succeed("pipeline", **WITHOUT_TESTS)
    embedded = machine.urls()["target"]
    marts = containers.marts()

    assert marts == read_marts(lambda statement: query(embedded, statement))
    assert marts["fct_orders"][0] > 10_000
    assert ["marts.fct_orders", f"{marts['fct_orders'][0]:,}"] in [line.split() for line in filled.splitlines()]
    containers.compose("run", "--rm", "--no-deps", "etl", "etl", "verify")


@pytest.mark.usefixtures("filled")
def test_analyst_reads_the_marts_with_the_password_from_a_file(containers):
    assert query(containers.url("target", "analyst"), "select count(*) > 0 from marts.fct_orders") == [(True,)]


@pytest.mark.usefixtures("filled")
def test_image_has_its_own_user_and_no_build_tools(containers):
    tools = "for name in gcc cc make pip pip3; do command -v $name; done"
    script = f"{tools}; python -m pip || python -c 'import setuptools' || id -u"
    told = containers.run("docker", "run", "--rm", "--entrypoint", "sh", containers.environment["IMAGE"], "-c", script)
    (image,) = json.loads(containers.succeed("docker", "image", "inspect", containers.environment["IMAGE"]))

    assert told.stdout == "10001\n"
    assert image["Config"]["User"] == "tidemark"
    assert image["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "tidemark"


@pytest.mark.usefixtures("api")
def test_containers_show_no_password_and_have_few_privileges(containers):
    told = containers.inspect()
    logs = containers.compose(*PROFILES, "logs", "--no-color")
    shown = json.dumps(told)

    assert len(told) >= 9
    assert [secret for secret in containers.secrets() if secret in shown + logs] == []
    for container in told:
        name = container["Name"]
        assert container["HostConfig"]["ReadonlyRootfs"], name
        assert container["HostConfig"]["CapDrop"] == ["ALL"], name
        assert not container["HostConfig"]["CapAdd"], name
        assert all(
            binding["HostIp"] == "127.0.0.1"
            for bindings in container["HostConfig"]["PortBindings"].values()
            for binding in bindings
        ), name


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("service", ["source_db", "target_db", "airflow_db", "airflow-api-server", "airflow-scheduler"])
def test_container_user_is_unprivileged_with_limited_writes(containers, service):
    script = "id -u; grep CapEff /proc/1/status; touch /usr/x /opt/x 2>&1; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    told = containers.run("docker", "compose", "exec", "-T", service, "sh", "-c", script).stdout
    lines = told.splitlines()

    assert int(lines[0]) > 0
    assert lines[1].split() == ["CapEff:", "0000000000000000"]
    assert told.count("Read-only file system") == 2
    assert [secret for secret in containers.secrets() if secret in told] == []


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("service", ["airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", *OTHERS])
def test_only_programs_that_send_alerts_know_their_destination(containers, service):
    told = containers.compose("exec", "-T", service, "sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'")

    assert "AIRFLOW_HOME=" in told
    assert (f"ALERT_WEBHOOK_URL={WEBHOOK}\n" in told) is (service not in OTHERS)
    assert "ALERT_SMTP_URL" not in told  # its file is empty


def test_airflow_run_succeeds_and_produces_the_same_marts(containers, api):
    before = containers.marts()
    run_id = api.trigger()

    assert set(api.wait_for_success(run_id)) == set(TASKS)
    assert containers.marts() == before


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_airflow, what it kills without containers
def test_killed_services_come_back_and_the_marts_are_correct(containers, api):
    Containers(containers.folder, containers.environment | CELERY).make("compose-up")
    before = containers.marts()
    containers.compose("run", "--rm", "--no-deps", "seed", "python", "-m", "source_db", "simulate", "--seconds", "5")
    source, target = containers.url("source"), containers.url("target")
    workers = {container["Id"][:12] for container in containers.inspect("airflow-worker")}
    with locked(source, "orders"):
        run_id = api.trigger()
        wait_until(lambda: query(source, f"select {is_waited_for('orders')}") == [(True,)], "the task to read orders")
        containers.kill("source_db")  # the run reads again by itself: no other try of the task is needed
    wait_until(lambda: api.states(run_id)["extract_and_load"] == "success", "the source to be read")
    with locked(target, "raw.orders"):
        wait_until(lambda: query(target, f"select {is_waited_for('raw.orders')}") == [(True,)], "dbt to read raw")
        lost = api.place(run_id, "dbt_run")
        containers.kill("airflow-worker", lost)
        containers.kill("target_db")
    wait_until(lambda: api.states(run_id)["dbt_test"] == "running", "the rules to be checked")
    containers.kill("airflow-scheduler")
    tries = api.wait_for_success(run_id)

    assert len(workers) == 2
    assert lost in workers
    assert tries["dbt_run"] > 1
    assert containers.marts() != before
    incremental = containers.marts()
    containers.compose("run", "--rm", "--no-deps", "etl", "etl", "verify")
    assert containers.rebuilt_marts() == incremental


@pytest.mark.usefixtures("api")
def test_restore_is_rejected_while_tasks_may_write(containers):
    path = containers.folder / "too-soon.dump"
    containers.make("backup", f"ARGS={path}")  # beside everything else
    refused = containers.run("make", "restore", f"FILE={path}", f"PYTHON={sys.executable}")

    assert refused.returncode != 0
    running = {one["Config"]["Labels"][SERVICE] for one in containers.inspect() if one["State"]["Running"]}
    assert set(refused.stderr.partition("docker compose stop ")[2].split("\n")[0].split()) == running & set(WRITERS)
    assert "airflow-scheduler" in running


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long", "filled")  # in short: test_backup, without containers
def test_dropped_warehouse_is_restored_from_a_backup(containers):
    containers.compose(*PROFILES, "stop", "airflow-scheduler", "airflow-worker")
    before = containers.marts()
    path = containers.folder / "warehouse.dump"
    containers.make("backup", f"ARGS={path}")
    drop = "drop database warehouse with (force)"
    containers.compose("exec", "-T", "target_db", "psql", "--username", "postgres", "--command", drop)
    containers.make("restore", f"FILE={path}")

    assert containers.marts() == before
    assert path.stat().st_mode & 0o077 == 0
    assert query(containers.url("target", "analyst"), "select count(*) > 0 from marts.fct_orders") == [(True,)]
    for command in (["etl", "etl", "run"], ["etl", "etl", "verify"], [*WITHOUT_RULES, "dbt"]):
        containers.compose("run", "--rm", "--no-deps", *command)
    assert containers.marts() == before


@pytest.mark.usefixtures("filled")
def test_invalid_backup_file_leaves_the_warehouse_unchanged(containers):
    containers.compose(*PROFILES, "stop", "airflow-scheduler", "airflow-worker")
    before = containers.marts()
    path = containers.folder / "broken.dump"
    path.write_bytes(b"PGDMP but no more")
    finished = containers.run("make", "restore", f"FILE={path}", f"PYTHON={sys.executable}")

    assert finished.returncode != 0
    assert containers.marts() == before


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long", "filled")  # in short: test_backup, without containers
def test_backup_is_restored_without_data_once_its_roles_exist(containers):
    before = containers.marts()
    path = containers.folder / "moved.dump"
    containers.psql("create role watcher; grant usage on schema etl to watcher")
    containers.make("backup", f"ARGS={path}")
    containers.make("compose-clean", "FORCE=1")
    refused = containers.run("make", "restore", f"FILE={path}", f"PYTHON={sys.executable}")
    assert refused.returncode != 0
    assert 'role "watcher" does not exist' in refused.stderr
    assert "watermarks" not in containers.psql("\\dt etl.*")
    containers.psql("create role watcher")
    containers.make("restore", f"FILE={path}")

    assert containers.marts() == before


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long", "filled")  # in short: test_backup, without containers
def test_restored_backup_needs_a_full_refresh_for_a_new_source(containers):
    """Follows the one above: the warehouse has come back, and its source has not."""
    before = containers.marts()
    containers.compose("run", "--rm", "--no-deps", "seed")
    refused = containers.run("docker", "compose", "run", "--rm", "--no-deps", "etl")
    assert refused.returncode == 1
    assert "holds rows of database" in refused.stdout + refused.stderr
    assert containers.marts() == before
    containers.compose("run", "--rm", "--no-deps", "etl", "etl", "run", "--full-refresh")
    containers.compose("run", "--rm", "--no-deps", "etl", "etl", "verify")
    containers.compose("run", "--rm", "--no-deps", *WITHOUT_RULES, "dbt")

    incremental = containers.marts()
    assert incremental["fct_orders"][0] > 10_000
    assert containers.rebuilt_marts() == incremental


@pytest.mark.usefixtures("filled")
def test_nothing_is_left_behind(containers):
    volumes = containers.left("volume")
    unconfirmed = containers.run("make", "compose-clean", f"PYTHON={sys.executable}")
    assert unconfirmed.returncode != 0
    assert sorted(unconfirmed.stderr.partition("containers: ")[2].split("\n")[0].split(", ")) == sorted(volumes)
    assert "nothing was deleted: confirm it with make compose-clean FORCE=1" in unconfirmed.stderr
    assert containers.left("volume") == volumes != []
    assert containers.left("container") != []
    containers.make("compose-clean", "FORCE=1")
    assert [containers.left(kind) for kind in ("container", "network", "volume")] == [[], [], []]
