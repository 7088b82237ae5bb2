"""Airflow's connections become libpq URLs that say the same."""

from types import SimpleNamespace

import psycopg2.extensions
import pytest

from etl.orchestration.connections import connection_url, without_urls


def connection(**given):
    blank = {"login": None, "password": None, "host": None, "port": None, "schema": None, "extra_dejson": {}}
    return SimpleNamespace(**(blank | given))


@pytest.mark.parametrize(
    "given",
    [
        {"login": "loader", "password": "p@ss:/word %", "host": "db.example", "port": 5434, "schema": "warehouse"},
        {"login": "user@tenant", "password": "?#&=", "host": "::1", "port": 5432, "schema": "my base"},
        {"login": "loader", "host": "db.example", "schema": "w", "extra_dejson": {"sslmode": "verify-full"}},
        {"login": "loader", "host": "db.example", "schema": "w", "extra_dejson": {"sslrootcert": "/a b/root.crt"}},
    ],
)
def test_every_part_of_a_connection_arrives(given):
    names = {"login": "user", "password": "password", "host": "host", "port": "port", "schema": "dbname"}
    wanted = {names[name]: str(value) for name, value in given.items() if name in names}

    found = psycopg2.extensions.parse_dsn(connection_url(connection(**given)))

    assert found == wanted | given.get("extra_dejson", {})


def test_what_only_airflow_reads_is_left_out():
    found = connection_url(connection(host="db", schema="w", extra_dejson={"cursor": "dictcursor", "__extra__": "{}"}))

    assert found == "postgresql://db/w"


def test_database_urls_of_the_environment_are_ignored():
    environment = {"PATH": "/bin", "TARGET_DATABASE_URL": "x", "TRANSFORMER_DATABASE_URL": "y"}

    assert without_urls(environment) == {"PATH": "/bin"}
