"""Servers given by URL get databases and roles with passwords from files, which programs then log in with."""

import os

import psycopg2
import pytest

from deploy.containers import entrypoint, health
from deploy.containers.provision import provision_given
from deploy.local.servers import Server
from etl.errors import ConfigurationError
from source_db import __main__ as source_db

HOST = "127.0.0.1"
PASSWORDS = {
    "postgres": "",
    "replicator": "r:1",
    "loader": "l\\2",
    "transformer": "t'3",
    "analyst": "a 4",
    "airflow": "5",
}


@pytest.fixture(scope="module")
def server(servers_home, free_port):
    """A server of its own, for roles belong to a whole server."""
    made = Server(name="given", folder=servers_home / "given", port=free_port(), major=18)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def secrets(server, tmp_path):
    for role, password in {**PASSWORDS, "postgres": server.password()}.items():
        (tmp_path / f"{HOST}.{role}").write_text(password)
    return tmp_path


@pytest.fixture
def variables(server, secrets, monkeypatch):
    """Variables without passwords, as in containers, and the file from which libpq takes them."""
    entrypoint.write_private(secrets / "pgpass", "".join(entrypoint.passfile_lines(secrets)))
    monkeypatch.setenv("PGPASSFILE", str(secrets / "pgpass"))
    return {
        f"{name}_ADMIN_DATABASE_URL": f"postgresql://postgres@{HOST}:{server.port}/anything"
        for name in ("SOURCE", "TARGET", "METADATA")
    }


def log_in(server, role, database):
    connection = psycopg2.connect(f"postgresql://{role}@{HOST}:{server.port}/{database}")
    try:
        with connection.cursor() as cursor:
            cursor.execute("select current_user")
            return cursor.fetchone()[0]
    finally:
        connection.close()


def test_all_roles_log_in_with_file_passwords_even_when_changed(server, secrets, variables):
    told = provision_given(variables, secrets)
    (secrets / f"{HOST}.loader").write_text("another")
    provision_given({"TARGET_ADMIN_DATABASE_URL": variables["TARGET_ADMIN_DATABASE_URL"]}, secrets)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        log_in(server, "loader", "warehouse")
    entrypoint.write_private(secrets / "pgpass", "".join(entrypoint.passfile_lines(secrets)))

    assert told == [f"{HOST}: replicator", f"{HOST}: loader, transformer, analyst", f"{HOST}: airflow"]
    assert log_in(server, "replicator", "source") == "replicator"
    assert log_in(server, "airflow", "airflow") == "airflow"
    for role in ("loader", "transformer", "analyst"):
        assert log_in(server, role, "warehouse") == role


def test_missing_password_is_reported_before_any_change(secrets, variables):
    (secrets / f"{HOST}.analyst").unlink()

    with pytest.raises(ConfigurationError, match=rf"lacks {HOST}\.analyst: .*make secrets"):
        provision_given(variables | {"TARGET_ADMIN_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, secrets)
    with pytest.raises(ConfigurationError, match="found none"):
        provision_given({}, secrets)


def test_filled_source_is_not_seeded_with_if_empty(source_url, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_ADMIN_DATABASE_URL", source_url)
    arguments = ["seed", "--scale", "0.01"]

    assert source_db.main([*arguments, "--if-empty"]) == 0
    assert "orders" in capsys.readouterr().out
    assert source_db.main([*arguments, "--if-empty"]) == 0
    assert "hold rows already: nothing to do" in capsys.readouterr().out
    assert source_db.main(arguments) == 1


def test_a_container_is_healthy_while_its_databases_answer(source_url, capsys):
    assert health.main([], {"SOURCE_DATABASE_URL": source_url, "HOME": os.environ["HOME"]}) == 0
    assert (
        health.main([], {"SOURCE_DATABASE_URL": source_url, "TARGET_DATABASE_URL": "postgresql://x@127.0.0.1:1/y"}) == 1
    )
    assert "TARGET_DATABASE_URL: connection to server" in capsys.readouterr().out


def test_unreachable_airflow_component_is_unhealthy(free_port, capsys):
    address = f"http://127.0.0.1:{free_port()}/health"

    assert health.main(["scheduler"], {"AIRFLOW_HEALTH_URL": address}) == 1
    assert f"scheduler: {address} does not answer" in capsys.readouterr().out
