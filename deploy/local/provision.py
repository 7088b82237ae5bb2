"""Creates databases, schemas and roles on servers, embedded or in containers; all of it can be repeated.

Begin at `make_target`. The caller provides the passwords.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from source_db import schema

SOURCE_NAME, TARGET_NAME = "source", "warehouse"
SOURCE_ROLES = ("replicator",)
TARGET_ROLES = ("loader", "transformer", "analyst")
METADATA_NAME = "airflow"  # Airflow's database, and the role that owns it


class Reachable(Protocol):
    """A server that its superuser can reach."""

    def url(self, database: str = ..., user: str = ..., password: str | None = ...) -> str:
        """Return a URL of the superuser, or of another role."""


def make_source(server: Reachable, passwords: Mapping[str, str]) -> None:
    """Create the database, the schema and the replicator if they are missing."""
    _create_database(server, SOURCE_NAME)
    admin = server.url(SOURCE_NAME)
    if not schema.is_applied(admin):
        schema.apply(admin)
    schema.create_replicator(admin, passwords["replicator"])


def make_target(server: Reachable, passwords: Mapping[str, str]) -> None:
    """Create the database, its schemas and its roles if they are missing."""
    _create_database(server, TARGET_NAME)
    roles = Path(__file__).with_name("roles.sql").read_text(encoding="utf-8")
    with schema.session(server.url(TARGET_NAME)) as connection, connection.cursor() as cursor:
        for role, password in passwords.items():
            _create_role(cursor, role, password)
        cursor.execute(roles)


def make_metadata(server: Reachable, passwords: Mapping[str, str]) -> None:
    """Create a database for Airflow's metadata and the role that owns it if they are missing."""
    _create_database(server, METADATA_NAME)
    with schema.session(server.url(METADATA_NAME)) as connection, connection.cursor() as cursor:
        _create_role(cursor, METADATA_NAME, passwords[METADATA_NAME])
        name = sql.Identifier(METADATA_NAME)
        cursor.execute(sql.SQL("alter database {} owner to {}").format(name, name))
        cursor.execute(sql.SQL("revoke all on database {} from public").format(name))


def _create_database(server: Reachable, name: str) -> None:
    connection = psycopg2.connect(server.url())
    connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
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
