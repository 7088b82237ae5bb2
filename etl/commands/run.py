"""One run over all tables: the run lock and the ledger around the work on the tables. Begin at `run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from psycopg2.extensions import connection as Connection

from etl.commands.attempts import Attempts
from etl.config import Settings
from etl.errors import EtlError, LockHeldError, TableError, UnavailableError
from etl.ledger import locks, runs, versions
from etl.model import Event, Observer, RunOptions, RunResult, ignore
from etl.postgres import sessions
from etl.source.session import Source
from etl.target.types import read_types


def run(
    settings: Settings,
    table_names: Sequence[str] = (),
    *,
    observe: Observer = ignore,
    options: RunOptions | None = None,
    may_end_shared_run: bool = True,
) -> RunResult:
    """Replicate the configured tables, or those named, and return what was done.

    A table that fails leaves the others alone. A run that processes share is put an end to when none of them is at
    work, unless `may_end_shared_run` is false. Raises ConfigurationError for wrong names and for a ledger of a version
    that this release does not know, UnavailableError when the run cannot start, LockHeldError when another run is at
    work.
    """
    started = time.monotonic()
    with errors_of_run(), open_control(settings) as control, locks.run_lock(control, settings.lock_wait_seconds):
        versions.bring_up(control, settings.lock_wait_seconds)
        _meet_shared_run(control, observe, may_end=may_end_shared_run)
        runs.bury_runs(control)
        types = read_types(control)
        with Source(settings) as source:  # the first attempt goes on with it, and closes it
            found = source.read_catalog(types, table_names)  # wrong names stop here, before a run is recorded
            say_what_is_unseen(source, observe)
            run_id = runs.begin_run(control)
            opened = (source, found)
            attempts = Attempts(settings, control, run_id, table_names, types, observe, options or RunOptions(), opened)
            error: str | None = "interrupted"
            try:
                results = attempts.run()
                error = summarize_failures([table.table_name for table in results if table.status != "succeeded"])
            except EtlError as failure:
                error = str(failure)
                raise
            finally:
                _end(control, run_id, error)
    return RunResult(run_id=run_id, seconds=time.monotonic() - started, tables=results)


@contextmanager
def errors_of_run() -> Iterator[None]:
    """Make a statement that fails outside the work on one table stop the run, with UnavailableError."""
    try:
        yield
    except TableError as error:
        raise UnavailableError(f"the run cannot go on: {error}", is_transient=error.is_transient) from error


@contextmanager
def open_control(settings: Settings) -> Iterator[Connection]:
    """Open the session that holds the run lock and keeps the ledger."""
    with closing(sessions.connect_target(settings)) as control:
        sessions.refuse_transaction_pooler(control, "target", partial(sessions.connect_target, settings))
        yield control


def _meet_shared_run(control: Connection, observe: Observer, *, may_end: bool) -> None:
    """Say that a run that processes share ends now, though it may have tables left, or refuse to end it."""
    shared = runs.describe_shared_run(control)
    if shared is None:
        return
    if not may_end:
        raise LockHeldError(
            f"{shared}, has not ended: try again once it has; if it never will, `etl run` puts an end to it"
        )
    message = f"{shared}, had not ended and has now: the tables that it has left go on in runs of their own"
    observe(Event(kind="notice", message=message))


def say_what_is_unseen(source: Source, observe: Observer) -> None:
    """Say what this source cannot tell, and what that costs."""
    if source.is_standby:
        message = "the source is a standby: rows that come later than the declared lookback are missed"
    elif not source.may_see_all:
        message = (
            "the source's role lacks pg_read_all_stats, so the second of two transactions sent in one message can be "
            "missed; run on the source: grant pg_read_all_stats to the role of SOURCE_DATABASE_URL"
        )
    else:
        return
    observe(Event(kind="notice", message=message))


def _end(control: Connection, run_id: int, error: str | None) -> None:
    """Record the end; when the target has gone away, the next run marks this one as died."""
    try:
        runs.end_run(control, run_id, error)
    except TableError:
        if error is None:
            raise


def summarize_failures(table_names: Sequence[str]) -> str | None:
    """Return what the ledger says of a run with which these tables failed."""
    return f"failed: {', '.join(table_names)}" if table_names else None
