"""The compose file, as text: what every container must not be able to do, and what it shares with the code."""

import tomllib
from pathlib import Path

import pytest
import yaml

from etl.local import containers
from etl.local.airflow_server import SOURCE_POOL, SOURCE_POOL_SLOTS

CHECKOUT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


def test_all_services_are_there():
    assert set(SERVICES) >= {"source_db", "target_db", "airflow_db", "airflow-api-server", *containers.STEPS}
    assert {name for name in containers.WRITERS if name not in SERVICES} == set()


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_contained(name):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"restart", "mem_limit", "cpus", "pids_limit", "networks", "logging"} <= set(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_no_variable_holds_a_password(name):
    environment = SERVICES[name].get("environment", {})
    bare = [variable for variable, value in environment.items() if "://" in str(value) and ":" in authority(value)]

    assert bare == []
    assert [name for name in environment if name.endswith(("PASSWORD", "SECRET", "SECRET_KEY", "FERNET_KEY"))] == []


def authority(url):
    """Return user and password of a URL, without the address."""
    return url.split("://", 1)[1].rpartition("@")[0]


def test_what_waits_for_others_waits_for_their_health_or_their_end():
    conditions = {
        needed["condition"] for service in SERVICES.values() for needed in service.get("depends_on", {}).values()
    }

    assert conditions == {"service_healthy", "service_completed_successfully"}


def test_the_metadata_of_airflow_are_reached_by_its_own_parts_only():
    reaching = {name for name, service in SERVICES.items() if "metadata" in service["networks"]}

    assert COMPOSE["networks"]["metadata"] == {"internal": True}
    assert {name for name in reaching if not name.startswith(("airflow", "redis"))} == set()


def test_the_pool_is_the_one_that_the_tasks_name():
    command = "".join(SERVICES["airflow-init"]["command"])

    assert f"airflow pools set {SOURCE_POOL} {SOURCE_POOL_SLOTS} " in command


def test_without_docker_the_next_step_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert containers.main(["down"]) == 1
    assert "docker is not installed: install Docker" in capsys.readouterr().err


def test_a_backup_never_overwrites_a_file(tmp_path, capsys):
    path = tmp_path / "warehouse.dump"
    path.write_text("kept")

    assert containers.main(["backup", str(path)]) == 1
    assert path.read_text() == "kept"
    assert f"{path} is there already" in capsys.readouterr().err


def test_a_backup_that_is_missing_is_told_before_anything_is_touched(tmp_path, capsys):
    assert containers.main(["restore", str(tmp_path / "none.dump")]) == 1
    assert "none.dump is not there: the backups are in backups/" in capsys.readouterr().err


def test_the_image_bears_the_version_of_the_project():
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]

    assert f"\nARG VERSION={version}\n" in (CHECKOUT / "Dockerfile").read_text()
