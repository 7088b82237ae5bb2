"""Opens every connection, bounds every session, and translates the driver's errors once.

Sessions on both sides pin the settings that decide how values look as text, so that text COPY is exact.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from etl import tls
from etl.errors import EtlError, RowRefusedError, SourceError, TargetError, UnavailableError

if TYPE_CHECKING:
    from etl.config import Settings
    from etl.database_url import DatabaseUrl

CONNECT_ATTEMPTS = 3
# A server that was killed or whose network is gone is noticed after idle + interval * count seconds.
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_COUNT = 3
MAX_TIMEOUT_MILLISECONDS = 2**31 - 1  # what the server takes
# Both sides must write and read values alike (https://www.postgresql.org/docs/current/runtime-config-client.html).
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
# Set in every session of this process: a session that does not have it has lost the settings above as well.
MARK_NAME = "tidemark.session"
MARK = secrets.token_hex(8)
# Classes of the manual's appendix A in which the same statement may succeed later.
TRANSIENT_CLASSES = ("08", "40", "53")
TRANSIENT_STATES = (
    "55P03",  # lock_not_available
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "25P03",  # idle_in_transaction_session_timeout
)
# Classes that blame a row: data exceptions, constraints, a view's check, and a trigger that raises.
ROW_CLASSES = ("22", "23", "44", "P0")
ROW_STATES = ("54000",)  # program_limit_exceeded: a value too large for an index
HINTS: Mapping[str, str] = {
    "42501": "grant the role what it lacks (docs/configuration.md)",
    "53100": "free or add disk space on the {side}",
    "53300": "raise max_connections of the {side}, or lower ETL_PARALLEL_TABLES",
    "55P03": "see what holds the lock on the {side} in pg_locks, or raise ETL_LOCK_TIMEOUT_SECONDS",
    "57014": "raise ETL_STATEMENT_TIMEOUT_SECONDS, or see what slows the {side}",
}
# Functions of the server whose 42501 is about a policy, not a grant: the message is in the server's language.
ASKS_POLICIES = ("check_enable_rls", "ExecWithCheckOptions")
# Answers of a server that is there but not ready, or full, when a connection is opened.
NOT_READY = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def connect_source(settings: Settings, *, idle_seconds: float | None = None) -> Connection:
    """Open a read-only session on the source, in autocommit, or raise UnavailableError.

    `idle_seconds` bounds how long it may idle inside a transaction; the default is the statement timeout.
    """
    # Rows that a policy hides would be lost in silence: with row_security off, the server refuses to read instead.
    session = _bounds(settings, idle_seconds) | {"default_transaction_read_only": "on", "row_security": "off"}
    return _connect(settings.source_url, "source", settings, session)


def connect_target(settings: Settings) -> Connection:
    """Open a session on the target, in autocommit, or raise UnavailableError.

    The server looks for a vanished client twice a second, so that a killed run frees its locks.
    """
    connection = _connect(settings.target_url, "target", settings, _bounds(settings, None))
    if connection.server_version >= 140000:
        with connection.cursor() as cursor:
            cursor.execute("set client_connection_check_interval = '500ms'")
    return connection


def refuse_transaction_pooler(connection: Connection, side: str, connect: Callable[[], Connection]) -> None:
    """Raise UnavailableError when a pooler hands this session's transactions to changing server sessions.

    A pooler shows in the process id: it tells its clients one of its own. While another session holds the server
    session that we used last, only a pooler in session mode finds our settings again. `connect` opens that session.
    """
    with errors_of(side, "looking for a pooler"), connection.cursor() as cursor:
        first = _server_pid(cursor)
        if first == connection.info.backend_pid:
            return
        if _server_pid(cursor) != first:  # a pool that takes its server sessions in turn
            raise _transaction_pooler(side)
        with contextlib.closing(connect()) as other, other.cursor() as holding:
            holding.execute("begin")
            holding.execute("select 1")
            if _server_pid(cursor) != first:
                raise _transaction_pooler(side)
            check_session(cursor, side)


def check_session(cursor: Cursor, side: str) -> None:
    """Raise UnavailableError when the server session is not the one that was set up."""
    cursor.execute("select pg_catalog.current_setting(%s, true)", (MARK_NAME,))
    if cursor.fetchone() != (MARK,):
        raise _transaction_pooler(side)


def single(cursor: Cursor) -> Any:
    """Return the value of a statement that answers one row of one column."""
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def export_snapshot(cursor: Cursor) -> str:
    """Open a transaction that only reads, whose snapshot others can share while it stays open; return its name."""
    cursor.execute("begin isolation level repeatable read, read only")
    cursor.execute("select pg_catalog.pg_export_snapshot()")
    return str(single(cursor))


def _server_pid(cursor: Cursor) -> int:
    cursor.execute("select pg_catalog.pg_backend_pid()")
    return int(single(cursor))


def _transaction_pooler(side: str) -> UnavailableError:
    return UnavailableError(
        f"the {side} is reached through a pooler in transaction mode, which loses a session's settings and locks "
        f"between transactions: point {side.upper()}_DATABASE_URL at the server itself, or at a pool in session mode"
    )


class Sessions:
    """Sessions of one side that serve one table after another: opening one costs more than reading what changed.

    Threads share it. One that was in use when an error was raised is not used again.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._idle: list[Connection] = []

    @contextlib.contextmanager
    def take(self) -> Iterator[Connection]:
        """Lend a session, in autocommit; raises UnavailableError when none can be opened."""
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


@contextlib.contextmanager
def errors_of(side: str, where: str) -> Iterator[None]:
    """Translate driver errors of one side ("source" or "target"); `where` names the table or the step."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error, side, where) from error


def translate(error: psycopg2.Error, side: str, where: str) -> EtlError:
    """Return our error for a driver's: its text, its SQLSTATE, and whether a retry may help."""
    state = error.pgcode
    text = "the connection was lost amid COPY" if _is_lost_in_copy(error) else _one_line(str(error))
    kind = SourceError if side == "source" else TargetError
    if kind is TargetError and _blames_a_row(state):
        kind = RowRefusedError
    label = f" (SQLSTATE {state})" if state else ""
    hint = f": {HINTS[state].format(side=side)}" if state and state in HINTS else ""
    if state == "42501" and error.diag.source_function in ASKS_POLICIES:  # rows that a policy hides would be missed
        hint = f": alter role ... bypassrls on the {side}, or skip the table in tables.yml"
    return kind(
        f"{where}: the {side} answered: {text or type(error).__name__}{label}{hint}",
        sqlstate=state,
        is_transient=is_transient(error),
    )


def is_transient(error: psycopg2.Error) -> bool:
    """Tell whether the same statement may succeed later; a lost connection has no SQLSTATE."""
    state = error.pgcode
    if state is None:
        return _is_lost_in_copy(error) or isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
    return state.startswith(TRANSIENT_CLASSES) or state in TRANSIENT_STATES


def _is_lost_in_copy(error: psycopg2.Error) -> bool:
    """Tell the error that psycopg2 raises when a connection ends amid COPY: of no kind, without SQLSTATE."""
    return error.pgcode is None and type(error) is psycopg2.DatabaseError


def _blames_a_row(state: str | None) -> bool:
    return state is not None and (state.startswith(ROW_CLASSES) or state in ROW_STATES)


@contextlib.contextmanager
def savepoint(cursor: Cursor, name: str) -> Iterator[None]:
    """Run a block that may fail inside a transaction: on any error of the database, undo the block alone."""
    cursor.execute(f"savepoint {name}")
    try:
        yield
    except EtlError:
        with contextlib.suppress(psycopg2.Error):  # a lost connection: its error is on the way
            cursor.execute(f"rollback to savepoint {name}")
        raise
    cursor.execute(f"release savepoint {name}")


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Run a block in one transaction of an autocommit session: commit at its end, roll back on any error."""
    with connection.cursor() as cursor:
        cursor.execute("begin")
        try:
            yield
        except BaseException:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute("rollback")
            raise
        cursor.execute("commit")


def _bounds(settings: Settings, idle_seconds: float | None) -> dict[str, str]:
    idle = settings.statement_timeout_seconds if idle_seconds is None else idle_seconds
    return {
        "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(idle),
    }


def _milliseconds(seconds: float) -> str:
    return f"{min(int(seconds * 1000), MAX_TIMEOUT_MILLISECONDS)}ms"


def _connect(url: DatabaseUrl, side: str, settings: Settings, session: Mapping[str, str]) -> Connection:
    retrying = Retrying(
        stop=stop_after_attempt(CONNECT_ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=0.3, max=3),
        retry=retry_if_exception(lambda error: isinstance(error, EtlError) and error.is_transient),
        reraise=True,
    )
    return retrying(_connect_once, url, side, settings, session)


def _connect_once(url: DatabaseUrl, side: str, settings: Settings, session: Mapping[str, str]) -> Connection:
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
        pinned = {**PINNED, **session, MARK_NAME: MARK}
        with connection.cursor() as cursor:
            calls = ", ".join(["set_config(%s, %s, false)"] * len(pinned))
            cursor.execute(f"select {calls}", [item for pair in pinned.items() for item in pair])
    except psycopg2.Error as error:
        if connection is not None:
            connection.close()
        raise _away(url, side, _one_line(str(error))) from error
    return connection


def _away(url: DatabaseUrl, side: str, text: str) -> UnavailableError:
    refusal = tls.find_next_step(text)
    has_answered = refusal is not None or "FATAL" in text
    next_step = refusal or f"check that it runs and that {side.upper()}_DATABASE_URL is right"
    return UnavailableError(
        f"cannot connect to the {side} at {url.address}: {tls.without_advice(text)}; {next_step}",
        is_transient=not has_answered or any(word in text for word in NOT_READY),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
