"""One run over all tables: takes the run lock and records the run in the ledger; `attempts` replicates the tables.

Begin at `run`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from psycopg2.extensions import connection as Connection

from etl.commands.attempts import Attempts, Job
from etl.config import Settings
from etl.errors import EtlError, LockHeldError, TableError, UnavailableError
from etl.ledger import locks, runs, versions
from etl.model import RunOptions
from etl.postgres import sessions
from etl.results import Event, Observer, RunResult, ignore
from etl.source.session import Source
from etl.target.raw_tables import read_known_tables
from etl.target.types import read_types


def run(
    settings: Settings,
    table_names: Sequence[str] = (),
    *,
    observe: Observer = ignore,
    options: RunOptions | None = None,
    may_end_shared_run: bool = True,
) -> RunResult:
    """Replicate the configured tables, or those named, and return the results.

    A table that fails does not stop the others. An unfinished shared run is ended first when none of its processes is
    running, unless `may_end_shared_run` is false. Raises ConfigurationError for wrong names and for a ledger of a
    version that this release does not know, UnavailableError when the run cannot start, LockHeldError when another run
    is in progress.
    """
    started = time.monotonic()
    with errors_of_run(), open_control(settings) as control, locks.run_lock(control, settings.lock_wait_seconds):
        versions.upgrade(control, settings.lock_wait_seconds)
        _meet_shared_run(control, observe, may_end=may_end_shared_run)
        runs.bury_runs(control)
        types = read_types(control)
        with Source(settings) as source:  # the first attempt uses it, and closes it
            found = source.read_catalog(
                types, table_names, read_known_tables(control)
            )  # wrong names stop here, before a run is recorded
            say_what_is_unseen(source, observe)
            run_id = runs.begin_run(control)
            job = Job(run_id=run_id, table_names=table_names, types=types, options=options or RunOptions())
            error: str | None = "interrupted"
            try:
                results = Attempts(settings, control, job, observe).run(source, found)
                error = summarize_failures([table.table_name for table in results if table.status != "succeeded"])
            except EtlError as failure:
                error = str(failure)
                raise
            finally:
                _end(control, run_id, error)
    return RunResult(run_id=run_id, seconds=time.monotonic() - started, tables=results)


@contextmanager
def errors_of_run() -> Iterator[None]:
    """Raise UnavailableError when a statement that belongs to no single table fails."""
    try:
        yield
    except TableError as error:
        raise UnavailableError(f"the run cannot continue: {error}", is_transient=error.is_transient) from error


@contextmanager
def open_control(settings: Settings) -> Iterator[Connection]:
    """Open the session that holds the run lock and writes the ledger; close it at the end."""
    with closing(sessions.connect_target(settings)) as control:
        yield control


def _meet_shared_run(control: Connection, observe: Observer, *, may_end: bool) -> None:
    """Report that an unfinished shared run ends now; raise LockHeldError if it may not be ended."""
    shared = runs.describe_shared_run(control)
    if shared is None:
        return
    if not may_end:
        raise LockHeldError(f"{shared}, has not ended: try again once it has; if it was abandoned, `etl run` ends it")
    message = f"{shared}, had not ended: this run ends it, and its remaining tables are replicated in runs of their own"
    observe(Event(kind="notice", message=message))


def say_what_is_unseen(source: Source, observe: Observer) -> None:
    """Report what this source cannot show, and which rows may be missed because of it."""
    if source.identity.timeline is None:
        message = (
            "the source does not show its timeline, so a failover or a restored backup can be missed; run on the "
            "source: grant execute on function pg_catalog.pg_control_checkpoint() to the role of SOURCE_DATABASE_URL"
        )
        observe(Event(kind="notice", message=message))
    if source.is_standby:
        message = "the source is a standby: rows that arrive later than the declared lookback are missed"
    elif not source.may_see_all:
        message = (
            "the source's role lacks pg_read_all_stats, so the second of two transactions sent in one message can be "
            "missed; run on the source: grant pg_read_all_stats to the role of SOURCE_DATABASE_URL"
        )
    else:
        return
    observe(Event(kind="notice", message=message))


def _end(control: Connection, run_id: int, error: str | None) -> None:
    """Record the end of a run; if that fails after another error, the next run marks this one as died."""
    try:
        runs.end_run(control, run_id, error)
    except TableError:
        if error is None:
            raise


def summarize_failures(table_names: Sequence[str]) -> str | None:
    """Return the error to record for a run in which these tables failed; None when there are none."""
    return f"failed: {', '.join(table_names)}" if table_names else None
