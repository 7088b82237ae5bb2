"""Opens, limits and pools the sessions of both sides, and refuses poolers that share sessions.

Every session pins the settings that decide how values are written as text, so that text COPY is exact.
Begin at `connect_source` and `connect_target`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from etl.errors import EtlError, UnavailableError
from etl.model import MASK_PADS, Side
from etl.postgres import stalls, tls
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
# The same while data that were sent are not acknowledged; the kernel's own limit is a quarter of an hour.
UNACKNOWLEDGED_SECONDS = KEEPALIVE_IDLE_SECONDS + KEEPALIVE_INTERVAL_SECONDS * KEEPALIVE_COUNT
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
SINCE: Mapping[str, int] = {**UNLIMITED, "client_connection_check_interval": 140_000}
# Set in every session of this process: a session without it has lost the settings above as well.
MARK_NAME = "tidemark.session"
MARK = secrets.token_hex(8)
POOLER_PROBES = 5
ANSWER_SECONDS = 1.0  # after which an answer that was on its way has arrived
# Words in the answer of a server that is running, but not ready or out of connections.
NOT_READY = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def connect_source(settings: Settings, *, idle_seconds: float | None = None) -> Connection:
    """Open a read-only session on the source, in autocommit, or raise UnavailableError.

    `idle_seconds` limits how long it may be idle in a transaction; the default is the statement timeout.
    """
    # Rows that a policy hides would be lost silently: with row_security off, the server raises an error instead.
    session = _bounds(settings, idle_seconds) | {"default_transaction_read_only": "on", "row_security": "off"}
    if settings.tables.mask_key:
        session |= dict(zip(MASK_PADS, settings.tables.mask_key.pads(), strict=True))
    return _connect(settings.source_url, "source", settings, session)


def connect_target(settings: Settings) -> Connection:
    """Open a session on the target, in autocommit, or raise UnavailableError.

    The server checks twice a second whether its client still exists, so that a killed run frees its locks.
    """
    session = _bounds(settings, None) | {"client_connection_check_interval": "500ms"}
    return _connect(settings.target_url, "target", settings, session)


def check_session(cursor: Cursor, side: Side) -> None:
    """Raise UnavailableError when the server session is not the one that was set up."""
    cursor.execute("select pg_catalog.current_setting(%s, true)", (MARK_NAME,))
    if cursor.fetchone() != (MARK,):
        raise _unsuitable_pooler(side)


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


def _limit(timeout_seconds: float) -> float:
    """Return how long the client waits for a statement that the server ends after this timeout; 0 means never."""
    return timeout_seconds + stalls.GRACE_SECONDS if timeout_seconds else float("inf")


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
    connection: stalls.Session | None = None
    try:
        connection = _open(url, settings)
        connection.group = settings
        if not _set_up(connection, session, only_in=connection.info.backend_pid):
            _require_session_pooler(connection, side, partial(_open, url, settings))
            connection.is_pooled = _set_up(connection, session)
        connection.limits = stalls.Limits(
            statement_seconds=_limit(settings.statement_timeout_seconds),
            stall_seconds=settings.stall_timeout_seconds or float("inf"),
        )
        connection.terminate = partial(_terminate, url, settings)
        connection.has_statement = partial(_has_statement, url, settings)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, psycopg2.Error):
            raise _away(url, side, one_line(str(error))) from error
        raise
    return connection


def _open(url: DatabaseUrl, settings: Settings) -> stalls.Session:
    """Open a session that has made no setting yet; a pooler may share it with others."""
    connection: stalls.Session = psycopg2.connect(
        str(url),
        connection_factory=stalls.Session,
        cursor_factory=stalls.WatchedCursor,
        application_name="tidemark",
        connect_timeout=settings.connect_timeout_seconds,
        client_encoding="UTF8",
        keepalives=1,
        keepalives_idle=KEEPALIVE_IDLE_SECONDS,
        keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
        keepalives_count=KEEPALIVE_COUNT,
        tcp_user_timeout=UNACKNOWLEDGED_SECONDS * 1000,
    )
    seconds = float(settings.connect_timeout_seconds)
    connection.limits = stalls.Limits(statement_seconds=seconds, stall_seconds=seconds)
    connection.autocommit = True
    return connection


def _set_up(connection: stalls.Session, session: Mapping[str, str], *, only_in: int | None = None) -> bool:
    """Make the settings of a session; with `only_in`, only in the server session of this process id.

    Return whether they were made. A pooler reports a process id of its own to its clients: then nothing is set.
    """
    wanted = {**PINNED, **dict.fromkeys(UNLIMITED, "0"), **session, MARK_NAME: MARK}
    version = connection.server_version
    pinned = {name: value for name, value in wanted.items() if version >= SINCE.get(name, 0)}
    calls = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(pinned))
    condition = "" if only_in is None else f" where pg_catalog.pg_backend_pid() = {only_in:d}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"select pg_catalog.pg_backend_pid(), {calls}{condition}",
            [item for pair in pinned.items() for item in pair],
        )
        row = cursor.fetchone()
    if row:
        connection.server_pid = row[0]
    return row is not None


def _require_session_pooler(connection: Connection, side: Side, connect: Callable[[], Connection]) -> None:
    """Raise UnavailableError when a pooler gives the server session of this connection to others while it is idle.

    Nothing is set, and each question is a transaction of its own. A pool that uses its server sessions in turn shows
    between two questions; one that uses the last one again gives it to a second connection.
    """
    with contextlib.closing(connect()) as other, connection.cursor() as mine, other.cursor() as theirs:
        first = _server_pid(mine)
        for _ in range(POOLER_PROBES):
            try:
                is_shared = _server_pid(mine) != first or _server_pid(theirs) == first
            except stalls.StalledError as error:
                raise UnavailableError(
                    f"the {side} is reached through a pooler that gives no second session: {error}; raise the size of "
                    f"the pool (default_pool_size in PgBouncer), or point {side.upper()}_DATABASE_URL at the server "
                    "itself"
                ) from error
            if is_shared:
                raise _unsuitable_pooler(side)


def _server_pid(cursor: Cursor) -> int:
    cursor.execute("select pg_catalog.pg_backend_pid()")
    return int(single(cursor))


def _unsuitable_pooler(side: Side) -> UnavailableError:
    return UnavailableError(
        f"the {side} is reached through a pooler in transaction or statement mode, which loses a session's settings "
        f"and locks between transactions: point {side.upper()}_DATABASE_URL at the server itself, or at a pool in "
        "session mode"
    )


def _terminate(url: DatabaseUrl, settings: Settings, server_pid: int) -> None:
    """End a session that does not answer, if the server still takes connections."""
    with (
        contextlib.suppress(psycopg2.Error),
        contextlib.closing(_open(url, settings)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(stalls.TERMINATE, (server_pid,))


def _has_statement(url: DatabaseUrl, settings: Settings, server_pid: int) -> bool:
    """Return whether a session has a statement in progress; also if the server answers, but refuses a connection.

    The server is asked twice, because an answer may just be on its way.
    """
    for _ in range(2):
        try:
            with contextlib.closing(_open(url, settings)) as connection, connection.cursor() as cursor:
                cursor.execute(stalls.IS_IN_PROGRESS, (server_pid,))
                if single(cursor):
                    return True
        except psycopg2.Error as error:
            if "FATAL" in str(error):
                return True
        time.sleep(ANSWER_SECONDS)
    return False


def _away(url: DatabaseUrl, side: Side, text: str) -> UnavailableError:
    refusal = tls.find_next_step(text)
    has_answered = refusal is not None or "FATAL" in text
    next_step = refusal or f"check that it is running and that {side.upper()}_DATABASE_URL is right"
    return UnavailableError(
        f"cannot connect to the {side} at {url.address}: {tls.without_advice(text)}; {next_step}",
        is_transient=not has_answered or any(word in text for word in NOT_READY),
    )
