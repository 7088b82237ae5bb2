"""Lets one build at a time work on a warehouse, whoever starts it. Begin at `build_lock`.

A build in parts builds each model in a process of its own, as Cosmos does: `open_build`, then `part_lock` for each
model, at once or one after another, then `close_build`. The lock lives in a session, and no session lives as long as
such a build; so a row tells that it is open, and is believed under the lock only: who finds another's name there is
refused, so that two builds never mix, whatever died in between. Time decides only how long others wait.
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

# Any constant serves, other than that of the runs, as long as every build uses the same: "mart" in ASCII.
BUILD_LOCK_KEY = 0x6D617274
# dbt's sessions look for a vanished client, so that what a killed dbt had in hand ends with it.
SESSION_OPTIONS = "-c client_connection_check_interval=500"
# Longer than Airflow waits before the next try of a task, by default settings.
ABANDONED_AFTER_SECONDS = 3600
POLL_SECONDS = 0.5
OPEN_BUILD = "intermediate.dbt_open_build"


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build in parts."""

    name: str
    owner: str  # who never has two builds at work at once: a new one of the same owner takes the place of the last


class ClosedBuildError(EtlError):
    """A part of a build is to be built, and the build is not open: another try finds the same."""


@contextmanager
def build_lock(environment: Mapping[str, str], url: str) -> Iterator[dict[str, str]]:
    """Hold the lock; give variables for the sessions of what runs under it, where the server takes them.

    The lock lives in an open transaction that has read nothing: poolers keep its session, vacuum does not wait for it.
    A build in parts that is open is waited for; one that nobody has worked on for an hour is closed.
    Raises LockHeldError after ETL_LOCK_WAIT_SECONDS.
    """
    with _session(environment, url) as (connection, settings):
        _take_alone(connection, settings.lock_wait_seconds)
        yield _session_options(connection)


@contextmanager
def open_build(environment: Mapping[str, str], url: str, build: Build) -> Iterator[dict[str, str]]:
    """Hold the lock as `build_lock` does; leave the build open at the end of the block, unless that fails.

    An open build of the same owner is over, and this one takes its place: its parts are refused from then on.
    """
    with _session(environment, url) as (connection, settings):
        _take_alone(connection, settings.lock_wait_seconds, owner=build.owner)
        yield _session_options(connection)
        with _telling("opening a build"), connection.cursor() as cursor:
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
    """Hold one part of an open build, beside other parts of it; give variables as `build_lock` does.

    Raises ClosedBuildError when the build is not the open one, and LockHeldError when the same part is at work
    elsewhere for longer than ETL_LOCK_WAIT_SECONDS.
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
            at_work = f"{found.name} is" if found else "none is"
            raise ClosedBuildError(
                f"expected the build {build.name} to be open on this warehouse, found: {at_work}; another took its "
                "place or it was closed: start again from the task that opens it"
            )
        try:
            yield _session_options(connection)
        finally:
            with suppress(psycopg2.Error):  # what went wrong with the part is told, not this
                _mark_as_seen(connection, build)  # before the lock goes: nobody takes it for abandoned in between
                connection.cursor().execute("commit")


def close_build(environment: Mapping[str, str], url: str, build: Build) -> bool:
    """Close the build once no part of it is at work; tell whether it was open. Raises LockHeldError as `build_lock`."""
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


def _take_alone(connection: Connection, wait_seconds: float, owner: str | None = None) -> None:
    """Take the lock when no build in parts is open, but for an abandoned one, or one of this owner."""
    deadline = time.monotonic() + wait_seconds
    while True:
        while _is_in_the_way(connection, owner):
            if time.monotonic() >= deadline:
                found = _read_open(connection)
                raise LockHeldError(
                    f"the build {found.name if found else 'of another'} is open on this warehouse; waited "
                    f"{wait_seconds:g} s: run again once it has ended, or wait longer with ETL_LOCK_WAIT_SECONDS; if "
                    f"nobody works on it, it is closed {ABANDONED_AFTER_SECONDS // 60} minutes after its last part"
                )
            time.sleep(POLL_SECONDS)
        with _waiting(connection, wait_seconds, max(0.0, deadline - time.monotonic())) as cursor:
            cursor.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (BUILD_LOCK_KEY,))
        found = _read_open(connection)
        if found is None or found.owner == owner:
            return
        if _is_in_the_way(connection, owner):  # opened meanwhile
            connection.cursor().execute("rollback")
        else:
            _delete_open(connection)


@contextmanager
def _waiting(connection: Connection, wait_seconds: float, left_seconds: float | None = None) -> Iterator[Cursor]:
    """Begin a transaction in which locks are waited for so long; it stays open."""
    left = wait_seconds if left_seconds is None else left_seconds
    with _telling("taking the lock of the models"), connection.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("set local idle_in_transaction_session_timeout = 0")
        cursor.execute("select set_config('lock_timeout', %s, true)", (f"{int(left * 1000) or 1}ms",))
        try:
            yield cursor
        except psycopg2.errors.LockNotAvailable as error:
            raise LockHeldError(
                f"another dbt command is at work on this warehouse; waited {wait_seconds:g} s: run again once it has "
                "ended, or wait longer with ETL_LOCK_WAIT_SECONDS"
            ) from error


def _is_in_the_way(connection: Connection, owner: str | None) -> bool:
    """Tell whether a build of somebody else is open, and has been worked on lately."""
    found = _read_open(connection)
    if found is None or found.owner == owner:
        return False
    with _telling("looking for an open build"), connection.cursor() as cursor:
        cursor.execute(
            f"select clock_timestamp() - seen_at < %s * interval '1 s' from {OPEN_BUILD}", (ABANDONED_AFTER_SECONDS,)
        )
        row = cursor.fetchone()
        return bool(row and row[0])


def _read_open(connection: Connection) -> Build | None:
    with _telling("looking for an open build"), connection.cursor() as cursor:
        cursor.execute("select pg_catalog.to_regclass(%s) is not null", (OPEN_BUILD,))
        if not single(cursor):
            return None
        cursor.execute(f"select build_name, owner from {OPEN_BUILD}")
        row = cursor.fetchone()
        return Build(name=row[0], owner=row[1]) if row else None


def _mark_as_seen(connection: Connection, build: Build) -> None:
    """Write that the build is worked on, where it is the open one."""
    if _read_open(connection) == build:
        with _telling("working on a build"), connection.cursor() as cursor:
            cursor.execute(f"update {OPEN_BUILD} set seen_at = clock_timestamp() where build_name = %s", (build.name,))


def _delete_open(connection: Connection) -> None:
    """Delete the row and release the lock, in one commit."""
    with _telling("closing a build"), connection.cursor() as cursor:
        cursor.execute(f"delete from {OPEN_BUILD}")
        cursor.execute("commit")


def _telling(what: str) -> AbstractContextManager[None]:
    return errors_of("target", what)


def _session_options(connection: Connection) -> dict[str, str]:
    """Return what has sessions look for a vanished client, where they reach the server itself: a pooler refuses it."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_backend_pid()")
        is_direct = bool(single(cursor) == connection.info.backend_pid)
    return {"PGOPTIONS": SESSION_OPTIONS} if is_direct and connection.server_version >= 140000 else {}
