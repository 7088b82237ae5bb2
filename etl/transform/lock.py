"""Lets one dbt command at a time work on a warehouse, whoever starts it. Begin at `build_lock`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import psycopg2
from psycopg2.extensions import connection as Connection

from etl import postgres
from etl.config import load_target_settings
from etl.errors import LockHeldError

# Any constant serves, other than that of the runs, as long as every build uses the same: "mart" in ASCII.
BUILD_LOCK_KEY = 0x6D617274
# dbt's sessions look for a vanished client, so that what a killed dbt had in hand ends with it.
SESSION_OPTIONS = "-c client_connection_check_interval=500"


@contextmanager
def build_lock(environment: Mapping[str, str], url: str) -> Iterator[dict[str, str]]:
    """Hold the lock; give variables for the sessions of what runs under it, where the server takes them.

    The lock lives in an open transaction that has read nothing: poolers keep its session, vacuum does not wait for it.
    Raises LockHeldError after ETL_LOCK_WAIT_SECONDS.
    """
    settings = load_target_settings(environment, url)
    with closing(postgres.connect_target(settings)) as connection:
        _take(connection, settings.lock_wait_seconds)
        yield {"PGOPTIONS": SESSION_OPTIONS} if _takes_options(connection) else {}


def _take(connection: Connection, wait_seconds: float) -> None:
    with postgres.errors_of("target", "taking the lock of the models"), connection.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("set local idle_in_transaction_session_timeout = 0")
        cursor.execute("select set_config('lock_timeout', %s, true)", (f"{int(wait_seconds * 1000) or 1}ms",))
        try:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (BUILD_LOCK_KEY,))
        except psycopg2.errors.LockNotAvailable as error:
            raise LockHeldError(
                f"another dbt command is at work on this warehouse; waited {wait_seconds:g} s: run again once it has "
                "ended, or wait longer with ETL_LOCK_WAIT_SECONDS"
            ) from error


def _takes_options(connection: Connection) -> bool:
    """Tell whether sessions reach the server itself: a pooler refuses options."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_backend_pid()")
        is_direct = bool(postgres.single(cursor) == connection.info.backend_pid)
    return is_direct and connection.server_version >= 140000
