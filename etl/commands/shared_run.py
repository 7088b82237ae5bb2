"""One run that several processes share, each with tables of its own: what the mapped tasks of an orchestrator call.

`begin` allots the run's id, `replicate` brings one table up to date in it, and `end` ends it. Between these calls the
ledger alone knows of the run: nobody holds a lock. While a process replicates, it holds the run lock in its shared
form, for which a run that wants the target alone waits, and a lock on its table. A run that comes between two tables
puts an end to this one, and the tables that are left are then replicated by runs of their own: at no time do rows of
two runs arrive, which is what lets a build note the newest run that has ended (docs/decisions/0009).
Begin at `begin`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from etl.commands.attempts import Attempts, record_missing_tables
from etl.commands.run import errors_of_run, open_control, run, say_what_is_unseen, summarize_failures
from etl.config import Settings
from etl.errors import EtlError, TableError
from etl.ledger import locks, runs, versions
from etl.ledger.progress import read_progress
from etl.model import Event, Observer, RunOptions, RunResult, TableResult
from etl.policy.table_order import TableOrder, order_children_first, related_tables
from etl.source.session import Source
from etl.target.types import read_types


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """A run that has begun, and the tables to replicate in it."""

    run_id: int
    table_names: tuple[str, ...]  # those with foreign keys before those that they refer to


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """How a shared run ended."""

    run_id: int
    failed_tables: tuple[str, ...]  # neither done in it nor in a later run
    caught_up: RunResult | None  # the run that brought the tables with foreign keys between them to one snapshot


def begin(settings: Settings, *, shared_by: str, observe: Observer) -> SharedRun:
    """Begin a run over the configured tables; it puts an end to runs that have not ended and are not at work.

    `shared_by` says to people what the run is part of. Raises ConfigurationError for wrong names, UnavailableError when
    the run cannot start, LockHeldError when another run is at work.
    """
    with (
        errors_of_run(),
        open_control(settings) as control,
        locks.run_lock(control, settings.lock_wait_seconds),
    ):
        runs.prepare(control, settings.lock_wait_seconds)
        with Source(settings) as source:
            found = source.read_catalog(read_types(control), ())
            say_what_is_unseen(source, observe)
            order = order_children_first([table.name for table in found.tables], source.read_references(found.tables))
        run_id = runs.begin_run(control, shared_by)

        def notice(message: str) -> None:
            observe(Event(kind="notice", message=message))

        for message in (*found.notices, *_describe_cycles(order)):
            notice(message)
        record_missing_tables(control, run_id, found, read_progress(control), notice)
    refused = tuple(sorted(found.refusals))  # each of these fails with its reason, as tables do
    return SharedRun(run_id=run_id, table_names=order.names + refused)


def replicate(
    settings: Settings, run_id: int, table_name: str, *, observe: Observer, options: RunOptions | None = None
) -> RunResult:
    """Bring one table up to date in a run that has begun, or in a run of its own if that one is over.

    May be called again, also after the process that did it was killed. Raises as `pipeline.run` does; LockHeldError
    also when another process is at work on the table, or another shared run has begun and not ended.
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
                found = source.read_catalog(types, (table_name,))
                attempts = Attempts(
                    settings,
                    control,
                    run_id,
                    (table_name,),
                    types,
                    observe,
                    options or RunOptions(),
                    (source, found),
                    shared_table=table_name,
                )
                results = attempts.run()
            return RunResult(run_id=run_id, seconds=time.monotonic() - started, tables=results)
    message = f"run {run_id} is over: {table_name} is replicated in a run of its own"
    observe(Event(kind="notice", message=message))
    return run(settings, (table_name,), observe=observe, options=options, may_end_shared_run=False)


def end(settings: Settings, run_id: int, *, observe: Observer) -> EndedRun:
    """End a run; then bring all tables that refer to each other to one later snapshot, in one more run.

    So no row lacks its parent, and what one transaction changed in several of them has arrived together, in whichever
    order tables were replicated or tried again. May be called again. Raises as `replicate` does.
    """
    with (
        errors_of_run(),
        open_control(settings) as control,
        locks.run_lock(control, settings.lock_wait_seconds),
    ):
        versions.bring_up(control, settings.lock_wait_seconds)  # and the run stays open
        failed = runs.read_failed_tables(control, run_id)
        runs.end_run(control, run_id, summarize_failures(failed))
        with Source(settings) as source:
            tables = source.read_catalog(read_types(control), ()).tables
            references = source.read_references(tables)
    related = related_tables([table.name for table in tables], references)
    caught_up = run(settings, related, observe=observe, may_end_shared_run=False) if related else None
    return EndedRun(run_id=run_id, failed_tables=tuple(failed), caught_up=caught_up)


@contextmanager
def _open_current(settings: Settings) -> Iterator[Connection]:
    """Open the session that holds the run lock; an older ledger is brought up first, under the run lock alone."""
    with open_control(settings) as control:
        if versions.read_version(control) != versions.VERSION:  # the run began with an older release
            with locks.run_lock(control, settings.lock_wait_seconds):
                versions.bring_up(control, settings.lock_wait_seconds)
        yield control


@contextmanager
def _recorded_failure(control: Connection, run_id: int, table_name: str) -> Iterator[None]:
    """Record why the work on a table ended, when it did not come to a result; the run goes on."""
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, EtlError) else "interrupted"
        with suppress(TableError):  # when the target has gone away, the end of the run tells
            runs.fail_table(control, run_id, TableResult(table_name=table_name, status="failed", error=reason))
        raise


def _describe_cycles(order: TableOrder) -> list[str]:
    return [
        f"{', '.join(cycle)} refer to each other: at the end of the run all are brought to one snapshot"
        for cycle in order.cycles
    ]
