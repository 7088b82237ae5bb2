"""Chooses the databases to work on: those given by URL, or embedded ones made ready on this machine.

Begin at `open_databases`. A database given by URL is never created, provisioned or written to from here.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from etl.errors import ConfigurationError
from etl.local.servers import Server, choose_home
from source_db import schema

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE_NAME, TARGET_NAME = "source", "warehouse"
TARGET_ROLES = ("loader", "transformer", "analyst")
METADATA_NAME = "airflow"  # of Airflow: its database, and the role that owns it
DEFAULT_PORTS = {"SOURCE_PORT": 5433, "TARGET_PORT": 5434, "AIRFLOW_PORT": 8080}


@dataclass(frozen=True, kw_only=True)
class Databases:
    """The URLs that commands work with, as environment variables, and whether each side is embedded."""

    urls: Mapping[str, str]
    is_source_embedded: bool
    is_target_embedded: bool

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.urls}


def embedded_servers(environment: Mapping[str, str] = os.environ) -> tuple[Server, Server]:
    """Return the source and target servers of this checkout, running or not."""
    home = choose_home(CHECKOUT)
    return _server("source", 16, home, environment), _server("target", 18, home, environment)


def open_databases(environment: Mapping[str, str] = os.environ) -> Databases:
    """Start and provision the embedded servers that are needed; return the URLs to use."""
    source, target = embedded_servers(environment)
    urls: dict[str, str] = {}
    is_source_embedded = not environment.get("SOURCE_DATABASE_URL")
    is_target_embedded = not environment.get("TARGET_DATABASE_URL")
    if is_source_embedded:
        source.start()
        urls |= provision_source(source)
    else:
        urls["SOURCE_DATABASE_URL"] = environment["SOURCE_DATABASE_URL"]
    if is_target_embedded:
        target.start()
        urls |= provision_target(target)
    else:
        urls["TARGET_DATABASE_URL"] = environment["TARGET_DATABASE_URL"]
    return Databases(urls=urls, is_source_embedded=is_source_embedded, is_target_embedded=is_target_embedded)


def provision_source(server: Server) -> dict[str, str]:
    """Make the database, the schema and the replicator where they are missing; return the URLs."""
    _create_database(server, SOURCE_NAME)
    admin = server.url(SOURCE_NAME)
    if not schema.is_applied(admin):
        schema.apply(admin)
    passwords = _passwords(server, ("replicator",))
    schema.create_replicator(admin, passwords["replicator"])
    return {
        "SOURCE_ADMIN_DATABASE_URL": admin,
        "SOURCE_DATABASE_URL": server.url(SOURCE_NAME, "replicator", passwords["replicator"]),
    }


def provision_target(server: Server) -> dict[str, str]:
    """Make the database, its schemas and its roles where they are missing; return the URLs."""
    _create_database(server, TARGET_NAME)
    passwords = _passwords(server, TARGET_ROLES)
    roles = resources.files("etl.local").joinpath("roles.sql").read_text(encoding="utf-8")
    with schema.session(server.url(TARGET_NAME)) as connection, connection.cursor() as cursor:
        for role, password in passwords.items():
            _create_role(cursor, role, password)
        cursor.execute(roles)
    urls = {role: server.url(TARGET_NAME, role, passwords[role]) for role in TARGET_ROLES}
    return {
        "TARGET_DATABASE_URL": urls["loader"],
        "TRANSFORMER_DATABASE_URL": urls["transformer"],
        "ANALYST_DATABASE_URL": urls["analyst"],
    }


def provision_metadata(server: Server) -> str:
    """Make a database for Airflow's metadata, and a role that owns it, where they are missing; return the URL."""
    _create_database(server, METADATA_NAME)
    password = _passwords(server, (METADATA_NAME,), "airflow.json")[METADATA_NAME]
    with schema.session(server.url(METADATA_NAME)) as connection, connection.cursor() as cursor:
        _create_role(cursor, METADATA_NAME, password)
        name = sql.Identifier(METADATA_NAME)
        cursor.execute(sql.SQL("alter database {} owner to {}").format(name, name))
        cursor.execute(sql.SQL("revoke all on database {} from public").format(name))
    return server.url(METADATA_NAME, METADATA_NAME, password)


def _create_database(server: Server, name: str) -> None:
    connection = psycopg2.connect(server.url())
    connection.autocommit = True  # CREATE DATABASE refuses a transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute("select from pg_catalog.pg_database where datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    finally:
        connection.close()


def _create_role(cursor: Cursor, role: str, password: str) -> None:
    cursor.execute("select from pg_catalog.pg_roles where rolname = %s", (role,))
    if cursor.fetchone() is None:
        cursor.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
    cursor.execute(
        sql.SQL("alter role {} with login nosuperuser nocreatedb nocreaterole noreplication password {}").format(
            sql.Identifier(role), schema.password_verifier(cursor.connection, role, password)
        )
    )


def _passwords(server: Server, roles: tuple[str, ...], name: str = "passwords.json") -> dict[str, str]:
    """Return the roles' passwords, made at random once and kept beside the data, readable by the owner only."""
    path = server.folder / name
    if path.exists():
        found: dict[str, str] = json.loads(path.read_text())
        return found
    made = {role: secrets.token_urlsafe(18) for role in roles}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(made, file)
    return made


def _server(name: str, major: int, home: Path, environment: Mapping[str, str]) -> Server:
    variable = f"{name.upper()}_PORT"
    port = read_port(environment, variable)
    return Server(name=name, folder=home / name, port=port, major=major, port_variable=variable)


def read_port(environment: Mapping[str, str], name: str) -> int:
    """Return the port that a variable names, or its default."""
    text = environment.get(name) or str(DEFAULT_PORTS[name])
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigurationError(f"{name} is {text!r}: expected a port, 1 to 65535")
    return int(text)
