"""Ensures that only one build at a time runs on a warehouse. Begin at `build_lock`.

A build in parts builds each model in its own process, as Cosmos does: `open_build`, then `part_lock` for each model,
concurrently or one after another, then `close_build`. A session holds the lock, and no session lasts as long as such
a build, so a row records that the build is open. A process trusts that row only while it holds the lock, and is
refused if the row names another build: two builds never mix, even when a process is killed. Elapsed time only decides
how long others wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.config import Settings, load_target_settings
from etl.errors import EtlError, LockHeldError
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import single

# Any constant works if all builds use it and the run lock uses another: "mart" in ASCII.
BUILD_LOCK_KEY = 0x6D617274
# dbt's sessions check that their client still exists, so the statements of a killed dbt end soon after it.
SESSION_OPTIONS = "-c client_connection_check_interval=500"
# Longer than Airflow waits, by default, before it retries a task.
ABANDONED_AFTER_SECONDS = 3600
POLL_SECONDS = 0.5
OPEN_BUILD = "intermediate.dbt_open_build"


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build in parts."""

    name: str
    owner: str  # an owner has at most one open build: opening another replaces it


class ClosedBuildError(EtlError):
    """A part cannot be built because its build is not open; a retry fails in the same way."""


@contextmanager
def build_lock(environment: Mapping[str, str], url: str) -> Iterator[dict[str, str]]:
    """Hold the build lock during the block; yield the environment variables for dbt's sessions.

    Waits for an open build in parts, and closes one that has been idle for an hour. Raises LockHeldError after
    ETL_LOCK_WAIT_SECONDS. The variables are empty if the server or a pooler would not accept them.
    An open transaction that has read nothing holds the lock: a pooler keeps its session, and vacuum need not wait.
    """
    with _session(environment, url) as (connection, settings):
        _take_exclusively(connection, settings.lock_wait_seconds)
        yield _session_options(connection)


@contextmanager
def open_build(environment: Mapping[str, str], url: str, build: Build) -> Iterator[dict[str, str]]:
    """Hold the lock as `build_lock` does, and leave the build open after the block unless the block fails.

    Replaces an open build of the same owner, whose parts are refused from then on.
    """
    with _session(environment, url) as (connection, settings):
        _take_exclusively(connection, settings.lock_wait_seconds, owner=build.owner)
        yield _session_options(connection)
        with _target_errors("opening a build"), connection.cursor() as cursor:
            cursor.execute("create schema if not exists intermediate")
            cursor.execute(
                f"create table if not exists {OPEN_BUILD} (is_only boolean primary key default true check (is_only), "
                "build_name text not null, owner text not null, begun_at timestamptz not null default now(), "
                "seen_at timestamptz not null)"
            )
            cursor.execute(f"delete from {OPEN_BUILD}")
            cursor.execute(
                f"insert into {OPEN_BUILD} (build_name, owner, seen_at) values (%s, %s, clock_timestamp())",
                (build.name, build.owner),
            )
            cursor.execute("commit")


@contextmanager
def part_lock(environment: Mapping[str, str], url: str, build: Build, part: str) -> Iterator[dict[str, str]]:
    """Hold the lock of one part of an open build, concurrently with other parts; yield variables as `build_lock` does.

    Raises ClosedBuildError when this build is not open, and LockHeldError when another process builds the same part
    for longer than ETL_LOCK_WAIT_SECONDS.
    """
    with _session(environment, url) as (connection, settings):
        _mark_as_seen(connection, build)
        with _waiting(connection, settings.lock_wait_seconds) as cursor:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock_shared(%s)", (BUILD_LOCK_KEY,))
            cursor.execute(
                "select pg_catalog.pg_advisory_xact_lock(%s, pg_catalog.hashtext(%s))", (BUILD_LOCK_KEY, part)
            )
        found = _read_open(connection)
        if found is None or found.name != build.name:
            open_name = found.name if found else "none"
            raise ClosedBuildError(
                f"expected the build {build.name} to be open on this warehouse, found {open_name}: it was closed, or "
                "another build replaced it; start again from the task that opens it"
            )
        try:
            yield _session_options(connection)
        finally:
            with suppress(psycopg2.Error):  # report the error of the part, not this one
                _mark_as_seen(connection, build)  # before the lock is released, so it never looks abandoned
                connection.cursor().execute("commit")


def close_build(environment: Mapping[str, str], url: str, build: Build) -> bool:
    """Close the build once none of its parts is running; return whether it was open. Raises LockHeldError."""
    with _session(environment, url) as (connection, settings):
        with _waiting(connection, settings.lock_wait_seconds) as cursor:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (BUILD_LOCK_KEY,))
        found = _read_open(connection)
        if found is None or found.name != build.name:
            return False
        _delete_open(connection)
        return True


@contextmanager
def _session(environment: Mapping[str, str], url: str) -> Iterator[tuple[Connection, Settings]]:
    settings = load_target_settings(environment, url)
    with closing(sessions.connect_target(settings)) as connection:
        yield connection, settings


def _take_exclusively(connection: Connection, wait_seconds: float, owner: str | None = None) -> None:
    """Take the lock once no build in parts is open, except one that is abandoned or has this owner."""
    deadline = time.monotonic() + wait_seconds
    while True:
        while _is_blocked(connection, owner):
            if time.monotonic() >= deadline:
                found = _read_open(connection)
                name = f"the build {found.name}" if found else "another build"
                raise LockHeldError(
                    f"{name} is open on this warehouse; waited {wait_seconds:g} s: run again once it has ended, or "
                    "wait longer with ETL_LOCK_WAIT_SECONDS; an abandoned build is closed "
                    f"{ABANDONED_AFTER_SECONDS // 60} minutes after its last part"
                )
            time.sleep(POLL_SECONDS)
        with _waiting(connection, wait_seconds, max(0.0, deadline - time.monotonic())) as cursor:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (BUILD_LOCK_KEY,))
        found = _read_open(connection)
        if found is None or found.owner == owner:
            return
        if _is_blocked(connection, owner):  # opened meanwhile
            connection.cursor().execute("rollback")
        else:
            _delete_open(connection)


@contextmanager
def _waiting(connection: Connection, wait_seconds: float, left_seconds: float | None = None) -> Iterator[Cursor]:
    """Begin a transaction that waits for locks only for the time left, and yield its cursor; leave it open."""
    left = wait_seconds if left_seconds is None else left_seconds
    with _target_errors("taking the build lock"), connection.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("set local idle_in_transaction_session_timeout = 0")
        cursor.execute("select set_config('lock_timeout', %s, true)", (f"{int(left * 1000) or 1}ms",))
        try:
            yield cursor
        except psycopg2.errors.LockNotAvailable as error:
            raise LockHeldError(
                f"another dbt command is running on this warehouse; waited {wait_seconds:g} s: run again once it has "
                "ended, or wait longer with ETL_LOCK_WAIT_SECONDS"
            ) from error


def _is_blocked(connection: Connection, owner: str | None) -> bool:
    """Return whether a build of another owner is open and not abandoned."""
    found = _read_open(connection)
    if found is None or found.owner == owner:
        return False
    with _target_errors("reading the open build"), connection.cursor() as cursor:
        cursor.execute(
            f"select clock_timestamp() - seen_at < %s * interval '1 s' from {OPEN_BUILD}", (ABANDONED_AFTER_SECONDS,)
        )
        row = cursor.fetchone()
        return bool(row and row[0])


def _read_open(connection: Connection) -> Build | None:
    with _target_errors("reading the open build"), connection.cursor() as cursor:
        cursor.execute("select pg_catalog.to_regclass(%s) is not null", (OPEN_BUILD,))
        if not single(cursor):
            return None
        cursor.execute(f"select build_name, owner from {OPEN_BUILD}")
        row = cursor.fetchone()
        return Build(name=row[0], owner=row[1]) if row else None


def _mark_as_seen(connection: Connection, build: Build) -> None:
    """Record that the build is still in progress, if it is the open one."""
    if _read_open(connection) == build:
        with _target_errors("updating an open build"), connection.cursor() as cursor:
            cursor.execute(f"update {OPEN_BUILD} set seen_at = clock_timestamp() where build_name = %s", (build.name,))


def _delete_open(connection: Connection) -> None:
    """Delete the row and release the lock, in one commit."""
    with _target_errors("closing a build"), connection.cursor() as cursor:
        cursor.execute(f"delete from {OPEN_BUILD}")
        cursor.execute("commit")


def _target_errors(what: str) -> AbstractContextManager[None]:
    return errors_of("target", what)


def _session_options(connection: Connection) -> dict[str, str]:
    """Return variables that make sessions check that their client still exists; none if a pooler would refuse them."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_backend_pid()")
        is_direct = bool(single(cursor) == connection.info.backend_pid)
    return {"PGOPTIONS": SESSION_OPTIONS} if is_direct and connection.server_version >= 140000 else {}
