"""The compose file, as text: what every container must not be able to do, and what it shares with the code."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import etl
from deploy.containers import commands
from deploy.containers.entrypoint import ALERTS
from deploy.containers.secret_files import CHOICES, make_secrets
from etl.orchestration.pools import SOURCE_POOL, SOURCE_POOL_SLOTS

CHECKOUT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
EXAMPLES = re.findall(r"^# ((?:ETL|ALERT)_[A-Z_]+)=", (CHECKOUT / ".env.example").read_text(), re.MULTILINE)
SENDERS = ("airflow-scheduler", "airflow-worker", "airflow-dag-processor", "airflow-triggerer")


def test_all_services_are_there():
    assert set(SERVICES) >= {"source_db", "target_db", "airflow_db", "airflow-api-server", *commands.STEPS}
    assert {name for name in commands.WRITERS if name not in SERVICES} == set()


@pytest.mark.parametrize("name", SERVICES)
def test_containers_run_with_restricted_privileges(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"restart", "mem_limit", "cpus", "pids_limit", "networks", "logging"} <= set(service)
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_no_variable_holds_a_password(name):
    environment = SERVICES[name].get("environment", {})
    bare = [variable for variable, value in environment.items() if "://" in str(value) and ":" in authority(value)]

    assert bare == []
    assert [name for name in environment if name.endswith(("PASSWORD", "SECRET", "SECRET_KEY", "FERNET_KEY"))] == []


def authority(url):
    """Return user and password of a URL, without the address."""
    return url.split("://", 1)[1].rpartition("@")[0]


def test_services_wait_for_health_or_completion_of_others():
    conditions = {
        needed["condition"] for service in SERVICES.values() for needed in service.get("depends_on", {}).values()
    }

    assert conditions == {"service_healthy", "service_completed_successfully"}


def test_only_airflow_services_reach_its_metadata_database():
    reaching = {name for name, service in SERVICES.items() if "metadata" in service["networks"]}

    assert COMPOSE["networks"]["metadata"] == {"internal": True}
    assert {name for name in reaching if not name.startswith(("airflow", "redis"))} == set()


def test_worker_has_no_metadata_access_and_only_the_log_key():
    worker = SERVICES["airflow-worker"]
    keys = [name for name in worker["secrets"] if name.startswith("airflow")]
    near = {name for name, service in SERVICES.items() if set(service["networks"]) & set(worker["networks"])}

    assert keys == ["airflow_api_secret"]
    assert [name for name in worker["environment"] if "DATABASE__" in name or "JWT" in name or "FERNET" in name] == []
    assert "redis" in near
    assert "airflow_db" not in near
    assert "airflow_db" not in worker["depends_on"]


@pytest.mark.parametrize("name", SERVICES)
def test_file_read_by_a_variable_is_mounted_where_it_is_used(name):
    """Celery's are named everywhere, and read where tasks are handed out and taken."""
    environment = SERVICES[name].get("environment", {})
    read = {str(value).rpartition("/")[2] for variable, value in environment.items() if variable.endswith("_CMD")}
    if name not in ("airflow-scheduler", "airflow-worker"):
        read = {secret for secret in read if not secret.startswith("celery")}

    assert read <= set(SERVICES[name].get("secrets", []))


def test_load_settings_reach_their_services_without_defaults():
    settings = {name for name in EXAMPLES if name.startswith("ETL_")} - {"ETL_TABLES"}  # that file is in the image

    assert len(settings) > 10
    for name in ("etl", "dbt", "airflow-scheduler", "airflow-worker"):
        environment = SERVICES[name]["environment"]
        assert settings == {variable for variable in environment if variable.startswith("ETL_")}, name
        assert {variable for variable in settings if environment[variable]} == {"ETL_LOCK_WAIT_SECONDS"}, name


def test_only_alert_senders_get_the_alert_settings():
    assert sorted(ALERTS) == sorted(CHOICES)
    for name in SENDERS:
        service = SERVICES[name]
        told = {variable for variable in service["environment"] if variable.startswith("ALERT_")}
        assert told | set(ALERTS.values()) == {variable for variable in EXAMPLES if variable.startswith("ALERT_")}, name
        assert told & set(ALERTS.values()) == set(), name
        assert set(ALERTS) < set(service["secrets"]), name
        assert "pages" in service["networks"], name
    assert {name for name, service in SERVICES.items() if set(ALERTS) & set(service.get("secrets", []))} == set(SENDERS)


def has_compose():
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="Docker's compose plugin is not installed: .env is not tried")
def test_port_in_the_env_file_counts_despite_an_empty_export(tmp_path, monkeypatch):
    shutil.copy(CHECKOUT / "docker-compose.yml", tmp_path)
    (tmp_path / ".env").write_text("SOURCE_PORT=15433\nTARGET_PORT=15434\n")
    make_secrets(tmp_path)
    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    monkeypatch.setenv("SOURCE_PORT", "")
    monkeypatch.setenv("TARGET_PORT", "25434")
    services = json.loads(commands.answer("config", "--format", "json"))["services"]

    assert services["source_db"]["ports"][0]["published"] == "15433"
    assert services["target_db"]["ports"][0]["published"] == "25434"


def test_pool_is_the_one_named_by_the_tasks():
    command = "".join(SERVICES["airflow-init"]["command"])

    assert f"airflow pools set {SOURCE_POOL} {SOURCE_POOL_SLOTS} " in command


def test_missing_docker_shows_the_next_step(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert commands.main(["down"]) == 1
    assert "docker is not installed: install Docker" in capsys.readouterr().err


def test_a_backup_never_overwrites_a_file(tmp_path, capsys):
    path = tmp_path / "warehouse.dump"
    path.write_text("kept")

    assert commands.main(["backup", str(path)]) == 1
    assert path.read_text() == "kept"
    assert f"{path} already exists" in capsys.readouterr().err


def test_missing_backup_is_reported_before_any_change(tmp_path, capsys):
    assert commands.main(["restore", str(tmp_path / "none.dump")]) == 1
    assert "none.dump does not exist: the backups are in backups/" in capsys.readouterr().err


def test_image_has_the_version_of_the_project():
    assert f"\nARG VERSION={etl.__version__}\n" in (CHECKOUT / "Dockerfile").read_text()
