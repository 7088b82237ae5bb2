"""One run that several processes share, each with tables of its own: for the mapped tasks of an orchestrator.

`begin` allots the run's id, `replicate` brings one table up to date in it, and `end` ends it. Between these calls no
lock is held, and only the ledger shows the run. While a process replicates, it holds a lock on its table, and the run
lock in shared mode; a run that needs the target exclusively waits for that. If such a run starts between two tables, it
ends this run, and the remaining tables are then replicated in runs of their own. So rows of two runs never arrive at
the same time, and a build can note the newest run that has ended (docs/decisions/0009).
Begin at `begin`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from etl.commands.attempts import Attempts, Job, record_absences
from etl.commands.run import errors_of_run, open_control, run, say_what_is_unseen, summarize_failures
from etl.config import Settings
from etl.errors import EtlError, TableError
from etl.ledger import locks, runs, versions
from etl.model import RunOptions
from etl.policy.table_order import TableOrder, order_children_first, related_tables
from etl.results import Event, Observer, RunResult, TableResult
from etl.source.session import Source
from etl.target.raw_tables import read_known_tables
from etl.target.types import read_types


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """A run that has begun, and the tables to replicate in it."""

    run_id: int
    table_names: tuple[str, ...]  # tables before those that their foreign keys refer to


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """How a shared run ended."""

    run_id: int
    failed_tables: tuple[str, ...]  # succeeded neither in it nor in a later run
    caught_up: RunResult | None  # the run that brought tables that refer to each other to one snapshot


def begin(settings: Settings, *, shared_by: str, observe: Observer) -> SharedRun:
    """Begin a run over the configured tables; this ends earlier runs that were abandoned.

    `shared_by` describes, for messages, what the run is part of. Raises ConfigurationError for wrong names,
    UnavailableError when the run cannot start, LockHeldError when another run is in progress.
    """
    with (
        errors_of_run(),
        open_control(settings) as control,
        locks.run_lock(control, settings.lock_wait_seconds),
    ):
        runs.prepare(control, settings.lock_wait_seconds)
        with Source(settings) as source:
            found = source.read_catalog(read_types(control), (), read_known_tables(control))
            say_what_is_unseen(source, observe)
            order = order_children_first([table.name for table in found.tables], source.read_references(found.tables))
        run_id = runs.begin_run(control, shared_by)

        def notice(message: str) -> None:
            observe(Event(kind="notice", message=message))

        for message in (*found.notices, *found.left_out, *_describe_cycles(order)):
            notice(message)
        record_absences(control, run_id, found, notice)
    refused = tuple(sorted(found.refusals))  # each of these fails with its reason when it is replicated
    return SharedRun(run_id=run_id, table_names=order.names + refused)


def replicate(
    settings: Settings, run_id: int, table_name: str, *, observe: Observer, options: RunOptions | None = None
) -> RunResult:
    """Bring one table up to date in a run that has begun, or in a run of its own if that run has ended.

    May be called again, even after the process that did it was killed. Raises as `run` does, and LockHeldError also
    when another process is replicating the table, or another shared run has not ended.
    """
    started = time.monotonic()
    with (
        errors_of_run(),
        _open_current(settings) as control,
        locks.run_lock(control, settings.lock_wait_seconds, is_shared=True),
    ):
        if runs.is_running(control, run_id):
            with _recorded_failure(control, run_id, table_name), Source(settings) as source:
                types = read_types(control)
                found = source.read_catalog(types, (table_name,), read_known_tables(control))
                job = Job(
                    run_id=run_id,
                    table_names=(table_name,),
                    types=types,
                    options=options or RunOptions(),
                    shared_table=table_name,
                )
                results = Attempts(settings, control, job, observe).run(source, found)
            return RunResult(run_id=run_id, seconds=time.monotonic() - started, tables=results)
    message = f"run {run_id} is over: {table_name} is replicated in a run of its own"
    observe(Event(kind="notice", message=message))
    return run(settings, (table_name,), observe=observe, options=options, may_end_shared_run=False)


def end(settings: Settings, run_id: int, *, observe: Observer) -> EndedRun:
    """End a run; then bring all tables that refer to each other to one later snapshot, in one more run.

    After that, no row lacks its parent, and what one transaction changed in several tables is complete, in whatever
    order they were replicated or retried. May be called again. Raises as `replicate` does.
    """
    with (
        errors_of_run(),
        open_control(settings) as control,
        locks.run_lock(control, settings.lock_wait_seconds),
    ):
        versions.upgrade(control, settings.lock_wait_seconds)  # and the run stays open
        failed = runs.read_failed_tables(control, run_id)
        runs.end_run(control, run_id, summarize_failures(failed))
        with Source(settings) as source:
            tables = source.read_catalog(read_types(control), (), read_known_tables(control)).tables
            references = source.read_references(tables)
    related = related_tables([table.name for table in tables], references)
    caught_up = run(settings, related, observe=observe, may_end_shared_run=False) if related else None
    return EndedRun(run_id=run_id, failed_tables=tuple(failed), caught_up=caught_up)


@contextmanager
def _open_current(settings: Settings) -> Iterator[Connection]:
    """Open the session that holds the run lock; an older ledger is upgraded first, under the run lock alone."""
    with open_control(settings) as control:
        if versions.read_version(control) != versions.VERSION:  # the run began with an older release
            with locks.run_lock(control, settings.lock_wait_seconds):
                versions.upgrade(control, settings.lock_wait_seconds)
        yield control


@contextmanager
def _recorded_failure(control: Connection, run_id: int, table_name: str) -> Iterator[None]:
    """Record why replicating a table ended without a result, and raise the error again; the run is not ended."""
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, EtlError) else "interrupted"
        with suppress(TableError):  # if the target is lost, the end of the run reports the table
            runs.fail_table(control, run_id, TableResult(table_name=table_name, status="failed", error=reason))
        raise


def _describe_cycles(order: TableOrder) -> list[str]:
    return [
        f"{', '.join(cycle)} refer to each other: at the end of the run all are brought to one snapshot"
        for cycle in order.cycles
    ]
