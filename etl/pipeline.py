"""One run over all tables: the lock, the ledger, the snapshot that tables share, and the retries.

An attempt takes its points, lists what is open, exports one snapshot and replicates the pending tables at it.
Tables that failed in a way that may pass, and those rewritten meanwhile, go into another attempt with points and
a snapshot of its own. Begin at `run`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from psycopg2.extensions import connection as Connection
from tenacity import Retrying, stop_after_attempt, wait_exponential_jitter

from etl import postgres, state, target
from etl.config import Settings
from etl.errors import EtlError, TableError, UnavailableError
from etl.model import Counts, Event, Progress, RunResult, Table, TableResult
from etl.replicate import Observer, Task, replicate_table
from etl.source import Source


def run(settings: Settings, table_names: Sequence[str] = (), *, observe: Observer) -> RunResult:
    """Replicate the configured tables, or those named, and return what was done.

    A table that fails leaves the others alone. Raises ConfigurationError for wrong names, UnavailableError when
    the run cannot start, LockHeldError when another run is at work.
    """
    started = time.monotonic()
    control = postgres.connect_target(settings)
    try:
        with state.run_lock(control, settings.lock_wait_seconds):
            known_to_target = _start(control)
            with Source(settings) as source:
                source.read_catalog(known_to_target, table_names)  # wrong names stop here, before a run is recorded
            run_id = state.begin_run(control)
            attempts = _Attempts(settings, control, run_id, table_names, known_to_target, observe)
            error: str | None = "interrupted"
            try:
                results = attempts.run()
                error = _summarize_failures(results)
            except EtlError as failure:
                error = str(failure)
                raise _as_unavailable(failure) from failure
            finally:
                _end(control, run_id, error)
    finally:
        control.close()
    return RunResult(run_id=run_id, seconds=time.monotonic() - started, tables=results)


def _start(control: Connection) -> frozenset[str]:
    try:
        state.prepare(control)
        return target.read_known_types(control)
    except TableError as error:
        raise UnavailableError(f"the run cannot start: {error}") from error


def _end(control: Connection, run_id: int, error: str | None) -> None:
    """Record the end; when the target has gone away, the next run marks this one as died."""
    try:
        state.end_run(control, run_id, error)
    except TableError:
        if error is None:
            raise


def _summarize_failures(results: Sequence[TableResult]) -> str | None:
    failed = [result.table_name for result in results if result.status != "succeeded"]
    return f"failed: {', '.join(failed)}" if failed else None


@dataclass
class _Attempts:
    """Works through the tables of one run until each has succeeded or failed for good."""

    settings: Settings
    control: Connection
    run_id: int
    table_names: Sequence[str]
    known_to_target: frozenset[str]
    observe: Observer
    results: dict[str, TableResult] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    errors: dict[str, EtlError] = field(default_factory=dict)  # the last error of each pending table
    attempt: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> tuple[TableResult, ...]:
        retrying = Retrying(
            stop=stop_after_attempt(self.settings.max_attempts),
            wait=wait_exponential_jitter(multiplier=0.5, max=30),
            retry=lambda call: call.outcome is not None and not call.outcome.failed and call.outcome.result(),
            retry_error_callback=lambda _: False,
        )
        retrying(self._attempt)
        for name, error in list(self.errors.items()):
            self._fail(name, error)
        return tuple(self.results[name] for name in sorted(self.results))

    def _attempt(self) -> bool:
        """Replicate what is pending; tell whether something is left that may succeed later."""
        self.attempt += 1
        try:
            with Source(self.settings) as source:
                self._replicate_pending(source)
        except (UnavailableError, TableError) as error:
            has_ended = self.control.closed or self.attempt == self.settings.max_attempts
            if has_ended or not error.is_transient:
                raise
            self.observe(Event(kind="notice", message=f"attempt {self.attempt} failed, trying again: {error}"))
            return True
        return bool(self.errors)

    def _replicate_pending(self, source: Source) -> None:
        found = source.read_catalog(self.known_to_target, self.table_names)
        if self.attempt == 1:
            for notice in found.notices:
                self.observe(Event(kind="notice", message=notice))
        for name, reason in found.refusals.items():
            if name not in self.results:
                self._fail(name, TableError(reason))
        pending = [table for table in found.tables if table.name not in self.results]
        points = source.take_points(pending)
        progress = state.read_progress(self.control)
        known = [point for table in pending for point in progress.get(table.name, Progress()).points]
        activity = source.drain([*known, *points.values()])
        source.export_snapshot()
        tasks = [
            Task(
                table=table,
                progress=progress.get(table.name, Progress()),
                point=points.get(table.name),
                activity=activity,
                system_identifier=source.system_identifier,
            )
            for table in pending
        ]
        with ThreadPoolExecutor(self.settings.parallel_tables, thread_name_prefix="table") as pool:
            for future in [pool.submit(self._replicate, source, task) for task in _largest_first(tasks)]:
                future.result()

    def _replicate(self, source: Source, task: Task) -> None:
        table, started = task.table, time.monotonic()
        self.observe(Event(kind="table_started", table_name=table.name, estimated_rows=_expected_rows(task)))
        try:
            with self.lock:
                state.start_table(
                    self.control,
                    self.run_id,
                    table.name,
                    watermark=task.progress.watermark,
                    snapshot=source.snapshot,
                    fence_wait_seconds=source.fence_wait_seconds,
                    retries=self.attempt - 1,
                )
            counts, after = replicate_table(self.settings, source, self.run_id, task, self._count)
        except EtlError as error:
            self._postpone_or_fail(table, error)
            return
        result = TableResult(
            table_name=table.name,
            status="succeeded",
            counts=self.counts.get(table.name, counts),
            watermark=after.watermark,
            seconds=time.monotonic() - started,
            retries=self.attempt - 1,
        )
        with self.lock:
            self.errors.pop(table.name, None)
            self.results[table.name] = result
        self.observe(Event(kind="table_finished", table_name=table.name, result=result))

    def _count(self, event: Event) -> None:
        """Add up a table's batches over all attempts, and pass the event on."""
        if event.table_name and event.counts:
            with self.lock:
                self.counts[event.table_name] = self.counts.get(event.table_name, Counts()) + event.counts
        self.observe(event)

    def _postpone_or_fail(self, table: Table, error: EtlError) -> None:
        if not error.is_transient:
            self._fail(table.name, error)
            return
        with self.lock:
            self.errors[table.name] = error
        self.observe(Event(kind="table_retried", table_name=table.name, message=str(error)))

    def _fail(self, name: str, error: EtlError) -> None:
        result = TableResult(
            table_name=name,
            status="failed",
            counts=self.counts.get(name, Counts()),
            retries=max(self.attempt - 1, 0),
            error=str(error),
        )
        with self.lock:
            self.errors.pop(name, None)
            self.results[name] = result
            state.fail_table(self.control, self.run_id, result)
        self.observe(Event(kind="table_finished", table_name=name, result=result))


def _as_unavailable(error: EtlError) -> EtlError:
    """Outside the work on one table, a statement that fails stops the run."""
    return UnavailableError(str(error)) if isinstance(error, TableError) else error


def _expected_rows(task: Task) -> int | None:
    """Return how many rows a person may expect, where that can be told: the whole table is read."""
    return task.table.estimated_rows if task.progress.watermark is None else None


def _largest_first(tasks: Sequence[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: task.table.estimated_rows, reverse=True)
