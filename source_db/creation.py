"""Creates the example shop in an empty database: tables from `models`, triggers from `sql/`, in one transaction.

Only `schema.apply` imports this, and only when there is something to create, because SQLAlchemy is slow to import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from psycopg2.extensions import connection as PostgresConnection
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from source_db.models import SchemaMigration, metadata

VERSION = "1"


def create(connect: Callable[[], PostgresConnection]) -> None:
    """Create types, tables, indexes, comments and triggers in one transaction of a new session, and commit.

    `connect` opens the session, so that libpq alone reads the URL and SQLAlchemy never holds a password.
    Raises psycopg2.Error when the database refuses a statement; then nothing is created.
    """
    engine = create_engine("postgresql+psycopg2://", creator=connect, poolclass=NullPool, hide_parameters=True)
    try:
        with engine.begin() as connection:
            # No check for what exists: a table of the same name is an error, not ours to use.
            metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(SchemaMigration).values(version=VERSION))
            connection.execution_options(no_parameters=True).exec_driver_sql(_read_triggers())
    except DBAPIError as error:
        raise (error.orig or error) from error


def _read_triggers() -> str:
    return resources.files("source_db").joinpath("sql", "triggers.sql").read_text(encoding="utf-8")
