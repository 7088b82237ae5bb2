"""Reads which version the ledger has, refuses one that is newer than this release, and upgrades an older one.

The comment on `etl.runs` begins with the version: every role can read it, before it knows which columns there are.
SQLAlchemy and Alembic are imported only to migrate. Begin at `upgrade`.
"""

from __future__ import annotations

import re

from psycopg2.extensions import connection as Connection

from etl.database_url import DatabaseUrl
from etl.errors import ConfigurationError, UnavailableError
from etl.ledger import locks
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import read_sql
from etl.postgres.transactions import transaction

VERSION = 6  # what this release reads and writes; a new one needs a migration (docs/decisions/0013)
STATED_VERSION = re.compile(r"Ledger version ([1-9][0-9]*)\.")
# Version 1 did not state its number.
COMMENT_OF_VERSION_1 = "One row per run. Runs are serial: ids are allotted under the run lock."
READ_COMMENT = """
    select pg_catalog.obj_description(c.oid, 'pg_class')
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'etl' and c.relname = 'runs'
"""


def read_version(connection: Connection) -> int | None:
    """Return the version of the target's ledger; None when there is no ledger.

    Raises ConfigurationError when this release does not know the version.
    """
    with errors_of("target", "looking for the ledger"), connection.cursor() as cursor:
        cursor.execute(READ_COMMENT)
        row = cursor.fetchone()
    if row is None:
        return None
    version = _parse_version(row[0])
    if version is None:
        raise ConfigurationError(
            f"the comment on etl.runs of {_address(connection)} states no version of the ledger: expected one that "
            f"begins with 'Ledger version N.', found {row[0]!r}: run on the target, with the version that the ledger "
            "had: comment on table etl.runs is 'Ledger version N.'"
        )
    if version > VERSION:
        raise ConfigurationError(
            f"the ledger of {_address(connection)} has version {version}, and this release knows up to {VERSION}: "
            f"upgrade Tidemark to one that knows version {version}"
        )
    return version


def require_current(connection: Connection, version: int) -> None:
    """Refuse a ledger of an older version, for a command that only reads. Raises UnavailableError."""
    if version < VERSION:
        raise UnavailableError(
            f"the ledger of {_address(connection)} has version {version}, and this release reads version {VERSION}: "
            "run `etl run` first, which upgrades it"
        )


def upgrade(connection: Connection, lock_wait_seconds: float) -> None:
    """Create the ledger where there is none, and migrate one of an older version. Under the run lock.

    All of it is one transaction, opened and committed here under the lock of the warehouse; one that fails leaves the
    old version whole. Raises ConfigurationError for a version that this release does not know, and LockHeldError when
    another session holds the lock of the warehouse for more than `lock_wait_seconds`.
    """
    if read_version(connection) == VERSION:
        return
    with (
        locks.warehouse_lock(connection, lock_wait_seconds),
        errors_of("target", "preparing the ledger"),
        transaction(connection),
        connection.cursor() as cursor,
    ):
        version = read_version(connection)  # another session may have upgraded it while this one waited
        if version != VERSION:
            cursor.execute(_compose(version))


def _compose(version: int | None) -> str:
    """Return the statements that lead from a version to this release's; the last one states the new version."""
    if version is None:
        return read_sql("etl.ledger", "creation")  # written from the tables, so that a first load does not import them
    from etl.ledger import tables  # noqa: PLC0415 imports SQLAlchemy, which costs as much as the rest
    from etl.ledger.migrations import composition  # noqa: PLC0415 imports Alembic

    return composition.compose(version, VERSION) + tables.compose_comments(f"Ledger version {VERSION}.")


def _parse_version(comment: str | None) -> int | None:
    if comment == COMMENT_OF_VERSION_1:
        return 1
    stated = STATED_VERSION.match(comment or "")
    return int(stated[1]) if stated else None


def _address(connection: Connection) -> str:
    return DatabaseUrl(connection.dsn).address
