"""Holds the advisory locks of the target: of the runs, of tables among processes that share a run, of the warehouse.

A session holds each of them, and the server frees it with the session. A process that takes several takes them in this
order: the run lock, then that of a table or of the warehouse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.errors import EtlError, LockHeldError, UnavailableError
from etl.postgres import stalls
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import single

# Any constants work, as long as every process on a database uses the same: "tide" and "tidw" in ASCII.
RUN_LOCK_KEY = 0x74696465  # its holder writes rows and runs; with a second number, a table of a shared run
WAREHOUSE_LOCK_KEY = 0x74696477  # its holder changes the ledger's tables, which all runs on the target read


@dataclass(frozen=True, kw_only=True)
class _Lock:
    """An advisory lock: one number, or two, which are another space ("Advisory Lock Functions" of the manual)."""

    what: str  # the message when another session holds it
    name: str
    key: tuple[int, ...]

    @property
    def parts(self) -> tuple[int, int, int]:
        """How pg_locks shows it: classid, objid and objsubid."""
        first, last = (0, *self.key)[-2:]
        return first, last % 2**32, len(self.key)


RUN_LOCK = _Lock(what="another run is in progress on this target", name="the run lock", key=(RUN_LOCK_KEY,))
WAREHOUSE_LOCK = _Lock(
    what="another process is upgrading the ledger of this target",
    name="the lock of the warehouse",
    key=(WAREHOUSE_LOCK_KEY,),
)
# Other roles see neither the address nor the start of a session.
NAME_LOCK_HOLDERS = """
    select
        a.pid, a.usename, a.application_name,
        case when a.backend_start is not null then coalesce(host(a.client_addr), 'local') end,
        a.backend_start, a.usename = current_user
    from pg_catalog.pg_locks as l
    join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.classid = %s and l.objid::bigint = %s and l.objsubid = %s
        and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    order by a.usename = current_user, a.backend_start
"""


@contextmanager
def run_lock(connection: Connection, wait_seconds: float, *, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock that lets one run at a time work on a target; the server frees it with the session.

    Processes that work in one run share it, and a run that wants it alone waits for them all. Raises LockHeldError,
    naming the holder, after `wait_seconds`. When this session is lost, every statement of the run ends with an error,
    and the block raises UnavailableError: another run may begin.
    """
    kind = "_shared" if is_shared else ""
    with errors_of("target", "taking the run lock"), connection.cursor() as cursor:
        _take_lock(cursor, f"pg_advisory_lock{kind}(%s)", RUN_LOCK, wait_seconds)
    with stalls.held(connection) as read_loss:
        try:
            yield
        except EtlError as error:
            loss = read_loss() or ("its connection was lost" if connection.closed else None)
            if loss is None:
                raise
            raise UnavailableError(
                f"the run has lost its lock, because its session on the target ended ({loss}): what it had committed "
                "is kept, nothing more was written; run again"
            ) from error
        finally:
            with suppress(psycopg2.Error), connection.cursor() as cursor:
                cursor.execute(f"select pg_catalog.pg_advisory_unlock{kind}(%s)", (RUN_LOCK_KEY,))


@contextmanager
def warehouse_lock(connection: Connection, wait_seconds: float) -> Iterator[None]:
    """Hold the lock that lets one session at a time change the ledger's tables, whichever source its run reads.

    It is that of the session, so that it is held until the transaction inside has committed. Raises LockHeldError,
    naming the holder, after `wait_seconds`.
    """
    with errors_of("target", "taking the lock of the warehouse"), connection.cursor() as cursor:
        _take_lock(cursor, "pg_advisory_lock(%s)", WAREHOUSE_LOCK, wait_seconds)
    try:
        yield
    finally:
        with suppress(psycopg2.Error), connection.cursor() as cursor:
            cursor.execute("select pg_catalog.pg_advisory_unlock(%s)", (WAREHOUSE_LOCK_KEY,))


def lock_table(connection: Connection, table_name: str, wait_seconds: float) -> None:
    """Let this session alone write a table, among those that share a run, until it ends.

    It has to be the session that writes: one that is lost has lost the lock and its transaction together.
    """
    with errors_of("target", f"taking the lock on {table_name}"), connection.cursor() as cursor:
        cursor.execute("select pg_catalog.hashtext(%s)", (table_name,))
        key = (RUN_LOCK_KEY, int(single(cursor)))
        what = f"another process of this run is working on {table_name}"
        lock = _Lock(what=what, name=f"the lock of {table_name}", key=key)
        _take_lock(cursor, "pg_advisory_lock(%s, %s)", lock, wait_seconds)


def _take_lock(cursor: Cursor, call: str, lock: _Lock, wait_seconds: float) -> None:
    """Wait for an advisory lock of the session. Raises LockHeldError after `wait_seconds`."""
    cursor.execute("select pg_catalog.current_setting('lock_timeout')")
    usual = cursor.fetchone()
    cursor.execute("select pg_catalog.set_config('lock_timeout', %s, false)", (f"{int(wait_seconds * 1000) or 1}ms",))
    try:
        cursor.execute(f"select pg_catalog.{call}", lock.key)
    except psycopg2.errors.LockNotAvailable as error:
        raise LockHeldError(_describe_wait(cursor, lock, wait_seconds)) from error
    cursor.execute("select pg_catalog.set_config('lock_timeout', %s, false)", usual)


def _describe_wait(cursor: Cursor, lock: _Lock, wait_seconds: float) -> str:
    """Return the message that names who holds a lock; whoever may connect to a database can take any number."""
    cursor.execute(NAME_LOCK_HOLDERS, lock.parts)
    rows = cursor.fetchall()
    again = "run again once it has ended, or wait longer with ETL_LOCK_WAIT_SECONDS"
    if not rows:
        return f"{lock.what} (one that has just ended); waited {wait_seconds:g} s: {again}"
    pid, user, application, address, since, is_own_role = rows[0]
    parts = [f"pid {pid}", f"user {user}", f"application {application or 'unknown'}"]
    parts += [f"from {address}", f"connected since {since:%Y-%m-%d %H:%M:%S %Z}"] if since else []
    parts += [f"and {len(rows) - 1} more"] if len(rows) > 1 else []
    who = ", ".join(parts)
    if is_own_role:
        return f"{lock.what} ({who}); waited {wait_seconds:g} s: {again}"
    return (
        f"a session of another role holds {lock.name} of this target ({who}), which no run of this role does; waited "
        f"{wait_seconds:g} s: {again}; or, as {user} or a superuser, end it: select pg_terminate_backend({pid})"
    )
