"""Creates the tables of the example source and the role that replicates them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import encrypt_password

# Parents before children: the order of loading, and of deleting backwards.
TABLES = ("customers", "products", "campaigns", "orders", "order_items", "payments", "inventory_levels", "events")

# By default every role may create temporary tables and large objects. Both are revoked: the replicator writes nothing.
GRANTS = """
    do $$
    begin
        execute format('revoke temporary on database %I from public', current_database());
    end
    $$;
    revoke execute on function lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) from public;
    alter role replicator set default_transaction_read_only = on;
    grant pg_read_all_stats to replicator;
    grant usage on schema public to replicator;
    grant select on all tables in schema public to replicator;
    grant select on all sequences in schema public to replicator;
    alter default privileges in schema public grant select on tables to replicator;
    alter default privileges in schema public grant select on sequences to replicator
"""


class SourceDatabaseError(Exception):
    """The example source cannot be used as asked; the message says the next step."""


@contextmanager
def session(url: str) -> Iterator[Connection]:
    """Open a session whose block is one transaction, committed at its end."""
    connection = _connect(url)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def _connect(url: str) -> Connection:
    return psycopg2.connect(url, application_name="source_db")


def apply(url: str) -> None:
    """Create types, tables, triggers, indexes and comments, all or nothing.

    Raises SourceDatabaseError when they exist already.
    """
    if is_applied(url):
        raise SourceDatabaseError("the schema exists already: fill it with `python -m source_db seed`")
    from source_db import creation  # noqa: PLC0415 it imports SQLAlchemy, which nothing else needs

    creation.create(lambda: _connect(url))


def is_applied(url: str) -> bool:
    """Return whether the database has the tables of the shop."""
    with session(url) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_catalog.to_regclass('public.schema_migrations') is not null")
        row = cursor.fetchone()
    return bool(row and row[0])


def password_verifier(connection: Connection, role: str, password: str) -> sql.Composable:
    """Return the verifier that the server keeps of a password, so that no statement in its log shows the password."""
    return sql.Literal(encrypt_password(password, role, connection, "scram-sha-256"))


def create_replicator(url: str, password: str) -> None:
    """Create the role that replication reads as, or set its password. The role can write nothing.

    `pg_read_all_stats` shows it when other transactions began, so that watermarks advance sooner and more safely.
    """
    with session(url) as connection, connection.cursor() as cursor:
        cursor.execute("select from pg_catalog.pg_roles where rolname = 'replicator'")
        if cursor.fetchone() is None:
            cursor.execute("create role replicator")
        cursor.execute(
            sql.SQL("alter role replicator with login nosuperuser nocreatedb nocreaterole password {}").format(
                password_verifier(connection, "replicator", password)
            )
        )
        cursor.execute(GRANTS)
