"""Opens, limits and pools the sessions of both sides, and refuses poolers in transaction mode.

Every session pins the settings that decide how values are written as text, so that text COPY is exact.
Begin at `connect_source` and `connect_target`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from etl.errors import EtlError, UnavailableError
from etl.model import Side
from etl.postgres import tls
from etl.postgres.error_translation import errors_of, one_line
from etl.postgres.transactions import single

if TYPE_CHECKING:
    from etl.config import Settings
    from etl.database_url import DatabaseUrl

CONNECT_ATTEMPTS = 3
# A killed server or a lost network is noticed after idle + interval * count seconds.
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_COUNT = 3
MAX_TIMEOUT_MILLISECONDS = 2**31 - 1  # the largest value that the server accepts
# Both sides must write and read values in the same way (https://www.postgresql.org/docs/current/runtime-config-client.html).
PINNED: Mapping[str, str] = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "search_path": "",
}
# Timeouts that would end a session between two of its statements or in a long load, and the version that has each.
UNLIMITED: Mapping[str, int] = {"idle_session_timeout": 140_000, "transaction_timeout": 170_000}
# Set in every session of this process: a session without it has lost the settings above as well.
MARK_NAME = "tidemark.session"
MARK = secrets.token_hex(8)
# Words in the answer of a server that is running, but not ready or out of connections.
NOT_READY = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def connect_source(settings: Settings, *, idle_seconds: float | None = None) -> Connection:
    """Open a read-only session on the source, in autocommit, or raise UnavailableError.

    `idle_seconds` limits how long it may be idle in a transaction; the default is the statement timeout.
    """
    # Rows that a policy hides would be lost silently: with row_security off, the server raises an error instead.
    session = _bounds(settings, idle_seconds) | {"default_transaction_read_only": "on", "row_security": "off"}
    return _connect(settings.source_url, "source", settings, session)


def connect_target(settings: Settings) -> Connection:
    """Open a session on the target, in autocommit, or raise UnavailableError.

    The server checks twice a second whether its client still exists, so that a killed run frees its locks.
    """
    connection = _connect(settings.target_url, "target", settings, _bounds(settings, None))
    if connection.server_version >= 140000:
        with connection.cursor() as cursor:
            cursor.execute("set client_connection_check_interval = '500ms'")
    return connection


def refuse_transaction_pooler(connection: Connection, side: Side, connect: Callable[[], Connection]) -> None:
    """Raise UnavailableError when a pooler runs the transactions of this session in different server sessions.

    A pooler shows in the process id, because it reports one of its own to its clients. To find its mode, a second
    session, opened with `connect`, starts a transaction: only in session mode does this session then keep its server
    session, with its settings.
    """
    with errors_of(side, "looking for a pooler"), connection.cursor() as cursor:
        first = _server_pid(cursor)
        if first == connection.info.backend_pid:
            return
        if _server_pid(cursor) != first:  # a pool that uses its server sessions in turn
            raise _transaction_pooler(side)
        with contextlib.closing(connect()) as other, other.cursor() as holding:
            holding.execute("begin")
            holding.execute("select 1")
            if _server_pid(cursor) != first:
                raise _transaction_pooler(side)
            check_session(cursor, side)


def check_session(cursor: Cursor, side: Side) -> None:
    """Raise UnavailableError when the server session is not the one that was set up."""
    cursor.execute("select pg_catalog.current_setting(%s, true)", (MARK_NAME,))
    if cursor.fetchone() != (MARK,):
        raise _transaction_pooler(side)


def _server_pid(cursor: Cursor) -> int:
    cursor.execute("select pg_catalog.pg_backend_pid()")
    return int(single(cursor))


def _transaction_pooler(side: Side) -> UnavailableError:
    return UnavailableError(
        f"the {side} is reached through a pooler in transaction mode, which loses a session's settings and locks "
        f"between transactions: point {side.upper()}_DATABASE_URL at the server itself, or at a pool in session mode"
    )


class Sessions:
    """A pool of sessions of one side, reused from table to table: opening one costs more than reading what changed.

    Threads may share the pool. A session that was in use when an error was raised is not used again.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._idle: list[Connection] = []

    @contextlib.contextmanager
    def take(self) -> Iterator[Connection]:
        """Lend a session in autocommit to the block; raises UnavailableError when none can be opened."""
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if not connection.closed:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the sessions that are not lent."""
        while self._idle:
            self._idle.pop().close()


def _bounds(settings: Settings, idle_seconds: float | None) -> dict[str, str]:
    idle = settings.statement_timeout_seconds if idle_seconds is None else idle_seconds
    return {
        "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(idle),
    }


def _milliseconds(seconds: float) -> str:
    return f"{min(int(seconds * 1000), MAX_TIMEOUT_MILLISECONDS)}ms"


def _connect(url: DatabaseUrl, side: Side, settings: Settings, session: Mapping[str, str]) -> Connection:
    retrying = Retrying(
        stop=stop_after_attempt(CONNECT_ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=0.3, max=3),
        retry=retry_if_exception(lambda error: isinstance(error, EtlError) and error.is_transient),
        reraise=True,
    )
    return retrying(_connect_once, url, side, settings, session)


def read_clock(connection: Connection, side: Side) -> dt.datetime:
    """Return the time of a server's clock."""
    with errors_of(side, "reading the clock"), connection.cursor() as cursor:
        cursor.execute("select pg_catalog.clock_timestamp()")
        now: dt.datetime = single(cursor)
    return now


def _connect_once(url: DatabaseUrl, side: Side, settings: Settings, session: Mapping[str, str]) -> Connection:
    connection: Connection | None = None
    try:
        connection = psycopg2.connect(
            str(url),
            application_name="tidemark",
            connect_timeout=settings.connect_timeout_seconds,
            client_encoding="UTF8",
            keepalives=1,
            keepalives_idle=KEEPALIVE_IDLE_SECONDS,
            keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
            keepalives_count=KEEPALIVE_COUNT,
        )
        connection.autocommit = True
        unlimited = {name: "0" for name, version in UNLIMITED.items() if connection.server_version >= version}
        pinned = {**PINNED, **unlimited, **session, MARK_NAME: MARK}
        with connection.cursor() as cursor:
            calls = ", ".join(["set_config(%s, %s, false)"] * len(pinned))
            cursor.execute(f"select {calls}", [item for pair in pinned.items() for item in pair])
    except psycopg2.Error as error:
        if connection is not None:
            connection.close()
        raise _away(url, side, one_line(str(error))) from error
    return connection


def _away(url: DatabaseUrl, side: Side, text: str) -> UnavailableError:
    refusal = tls.find_next_step(text)
    has_answered = refusal is not None or "FATAL" in text
    next_step = refusal or f"check that it is running and that {side.upper()}_DATABASE_URL is right"
    return UnavailableError(
        f"cannot connect to the {side} at {url.address}: {tls.without_advice(text)}; {next_step}",
        is_transient=not has_answered or any(word in text for word in NOT_READY),
    )
