"""Ends waits for a server that has stopped answering, or for a network that has stopped passing bytes on.

No setting of a server ends such a wait, because the server's own timeouts need the server. So each call of the driver
is watched by a thread, which shuts down the socket of a call that is late: the driver then sees a lost connection.
A session that holds a lock is watched too: when it ends, its group makes no further statement. Begin at `Session`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

POLL_SECONDS = 0.25
SLEEPS_AFTER_POLLS = 20  # without a call
# The server ends a statement at the statement timeout; only if it does not, the client ends it, this much later.
GRACE_SECONDS = 10.0
MAX_MILLISECONDS = 2**31 - 1  # what a socket option holds
LOCK_LOST = "the run has lost its lock"
# A slow statement goes on; one that is not in progress has been answered, and the answer was lost.
IS_IN_PROGRESS = """
    select exists (select from pg_catalog.pg_stat_activity where pid = %s and state not like 'idle%%')
"""
TERMINATE = """
    select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
    where pid = %s and usename = current_user and application_name = 'tidemark'
"""


class StalledError(psycopg2.OperationalError):
    """The session was ended because nothing came from its server for too long."""


class LockLostError(psycopg2.OperationalError):
    """The session that held the lock of this group of sessions has ended."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the calls of a session may take; infinity for no limit."""

    statement_seconds: float  # for the answer to a statement, and for the first byte of COPY
    stall_seconds: float  # for each further byte of COPY; before that, until the server is asked whether it still works


class Session(Connection):
    """A connection whose waits end."""

    limits = Limits(statement_seconds=float("inf"), stall_seconds=float("inf"))
    group: object = None  # ends together, when the session that holds the group's lock is lost
    server_pid: int | None = None
    is_pooled = False
    terminate: Callable[[int], None] | None = None  # ends a session of the server by its process id
    has_statement: Callable[[int], bool] | None = None  # asks the server whether such a session has one in progress

    def close(self) -> None:
        """Close the connection; in a pool, first remove what the session has set, even if the pool would keep it."""
        if self.is_pooled and not self.closed and self.info.transaction_status == TRANSACTION_STATUS_IDLE:
            with contextlib.suppress(psycopg2.Error), self.cursor() as cursor:
                cursor.execute("discard all")
        super().close()


class WatchedCursor(Cursor):
    """A cursor whose statements end; COPY goes through `copy_pipe`."""

    def execute(self, query: Any, vars: Any = None) -> None:
        with watch(self.connection):
            super().execute(query, vars)


class Call:
    """One call of the driver that waits for its server."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.thread = threading.get_ident()
        self.measure: Callable[[], int] | None = None  # returns how many bytes have come so far
        self.ended_with: psycopg2.Error | None = None
        self._limits = session.limits
        self._measured = 0
        self._has_moved = False
        self._is_paused = False
        self._deadline = time.monotonic() + self._limits.statement_seconds
        self.ask_at = time.monotonic() + self._limits.stall_seconds if session.has_statement else float("inf")
        try:
            self._descriptor = os.dup(session.fileno())  # stays ours, whatever the driver does with its own
        except OSError:  # the connection was lost, as the driver will say
            self._descriptor = -1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, in which bytes that have moved are handled on our side."""
        self._is_paused = True
        try:
            yield
        finally:
            self._move()
            self._is_paused = False

    def check(self, now: float) -> None:
        """End the call if it is late."""
        if self._is_paused:
            return
        if self.measure:
            measured = self.measure()
            if measured != self._measured:
                self._measured = measured
                self._move()
        if now >= self._deadline and not self._is_paused:
            self.end(StalledError(self._describe()))

    def postpone(self, seconds: float) -> None:
        """Do not count a time in which this process stood still."""
        self._deadline += seconds
        self.ask_at += seconds

    def end(self, error: psycopg2.Error) -> None:
        """Shut down the socket, so that the call fails, with this error."""
        if self.ended_with is None:
            self.ended_with = error
            with contextlib.suppress(OSError), self._open_socket() as end:
                end.shutdown(socket.SHUT_RDWR)

    def ask(self) -> bool:
        """Ask the server, in another session, whether the statement is in progress."""
        session = self.session
        return not session.has_statement or not session.server_pid or session.has_statement(session.server_pid)

    def take_answer(self, is_in_progress: bool) -> None:
        """Go on waiting for a statement in progress, or end the call."""
        if self._has_moved:
            return
        seconds = self._limits.stall_seconds
        if is_in_progress:
            self.ask_at = time.monotonic() + seconds
            return
        self.end(
            StalledError(
                f"no answer came for {seconds:g} s (ETL_STALL_TIMEOUT_SECONDS), and the server takes no connection or "
                "has answered"
            )
        )

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Let the peer have no room for data as long as COPY may stall; the kernel takes it for dead otherwise."""
        usual = self._exchange_user_timeout(int(min(self._limits.stall_seconds * 1000, MAX_MILLISECONDS)))
        try:
            yield
        finally:
            self._exchange_user_timeout(usual)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _exchange_user_timeout(self, milliseconds: int) -> int:
        """Set how long sent data may stay unacknowledged, where the system has such a limit; return the old value."""
        if not milliseconds or not hasattr(socket, "TCP_USER_TIMEOUT"):
            return 0
        try:
            with self._open_socket() as end:
                usual = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        except OSError:  # a Unix socket, or a lost connection
            return 0
        return usual

    def _open_socket(self) -> socket.socket:
        return socket.socket(fileno=os.dup(self._descriptor))

    def _move(self) -> None:
        self._has_moved = True
        self.ask_at = float("inf")
        self._deadline = time.monotonic() + self._limits.stall_seconds

    def _describe(self) -> str:
        if self._has_moved:
            return f"no byte of COPY moved for {self._limits.stall_seconds:g} s (ETL_STALL_TIMEOUT_SECONDS)"
        return f"no answer came within {self._limits.statement_seconds:g} s"


class _Watchdog:
    """The thread that watches all calls and held sessions of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked process, nothing of it is there."""
        self._changed = threading.Condition()
        self._calls: set[Call] = set()
        self._held: dict[int, tuple[Session, Callable[[str], None]]] = {}
        self._lost: list[object] = []
        self._is_asleep = False
        self._thread: threading.Thread | None = None

    def begin(self, session: Session) -> Call:
        with self._changed:
            if any(group is session.group for group in self._lost):
                raise LockLostError(LOCK_LOST)
            call = Call(session)
            self._calls.add(call)
            self._wake()
        return call

    def finish(self, call: Call) -> None:
        with self._changed:
            self._calls.discard(call)
            call.close()

    def hold(self, session: Session, on_loss: Callable[[str], None]) -> None:
        with self._changed:
            self._held[id(session)] = session, on_loss
            self._wake()

    def release(self, session: Session) -> None:
        with self._changed:
            self._held.pop(id(session), None)
            self._lost = [group for group in self._lost if group is not session.group]

    def end_calls(self, is_meant: Callable[[Call], bool], error: psycopg2.Error) -> None:
        with self._changed:
            for call in filter(is_meant, self._calls):
                call.end(error)

    def _wake(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # the first time, and in a forked process
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        elif self._is_asleep:
            self._changed.notify()

    def _run(self) -> None:
        idle_polls, due = 0, time.monotonic()
        while True:
            with self._changed:
                stood_still = time.monotonic() - due
                for call in self._calls:
                    call.postpone(stood_still)
                idle_polls = 0 if self._calls or self._held else idle_polls + 1
                if idle_polls > SLEEPS_AFTER_POLLS:  # waking up for each statement would cost more than looking
                    self._is_asleep = True
                    self._changed.wait_for(lambda: self._calls or self._held)
                    self._is_asleep = False
                now = time.monotonic()
                for call in self._calls:
                    call.check(now)
                    if now >= call.ask_at:
                        call.ask_at = float("inf")
                        threading.Thread(target=self._ask, args=(call,), name="watchdog-asks", daemon=True).start()
                for session, on_loss in list(self._held.values()):
                    self._check_held(session, on_loss)
            due = time.monotonic() + POLL_SECONDS
            time.sleep(POLL_SECONDS)

    def _ask(self, call: Call) -> None:
        is_in_progress = call.ask()
        with self._changed:
            if call in self._calls:
                call.take_answer(is_in_progress)

    def _check_held(self, session: Session, on_loss: Callable[[str], None]) -> None:
        """End the session's group when its connection is lost, which an idle connection shows by being readable."""
        if any(call.session is session for call in self._calls):
            return
        try:
            if not session.closed and session.fileno() >= 0:
                if _is_readable(session.fileno()):
                    session.poll()
                return
            reason = "its connection is closed"
        except psycopg2.Error as error:
            reason = " ".join(str(error).split())
        del self._held[id(session)]
        self._lost.append(session.group)
        for call in self._calls:
            if call.session.group is session.group:
                call.end(LockLostError(LOCK_LOST))
        on_loss(reason)


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.reset)


@contextlib.contextmanager
def watch(connection: Connection) -> Iterator[Call | None]:
    """Watch a call of the driver on this connection; raises StalledError when it was ended for being late.

    The session is then ended on the server too, so that it holds no locks; a server that is away ends it later.
    """
    if not isinstance(connection, Session) or connection.closed:
        yield None
        return
    call = _watchdog.begin(connection)
    try:
        yield call
    except psycopg2.Error as error:
        if call.ended_with is None:
            raise
        if connection.terminate and connection.server_pid:
            connection.terminate(connection.server_pid)
        raise call.ended_with from error
    finally:
        _watchdog.finish(call)


@contextlib.contextmanager
def held(connection: Connection) -> Iterator[Callable[[], str | None]]:
    """Watch a session that holds a lock; yield a function that returns why it was lost, None while it was not.

    When it is lost, the calls of its group end, and later ones raise LockLostError, until the end of the block.
    """
    reasons: list[str] = []
    if isinstance(connection, Session):
        _watchdog.hold(connection, reasons.append)
    try:
        yield lambda: reasons[0] if reasons else None
    finally:
        if isinstance(connection, Session):
            _watchdog.release(connection)


def end_calls_of(thread: threading.Thread) -> None:
    """End the call in which this thread waits for a server, if it does."""
    _watchdog.end_calls(
        lambda call: call.thread == thread.ident, StalledError("its rows were not waited for, as the other side failed")
    )
