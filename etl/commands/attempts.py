"""The work on the tables of a run: the snapshot that they share, and the retries.

An attempt takes its points, lists what is open, exports one snapshot and replicates the pending tables at it.
Tables that failed in a way that may pass, those rewritten meanwhile, and those for which the snapshot would have to
be held too long, go on with points and a snapshot of their own. Begin at `Attempts`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from psycopg2.extensions import connection as Connection
from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_exponential_jitter

from etl.config import Settings
from etl.errors import EtlError, TableError, UnavailableError
from etl.ledger import locks, runs
from etl.ledger.progress import read_counters, read_progress
from etl.model import Counts, Event, Observer, Outcome, Position, Progress, RunOptions, Table, TableResult
from etl.policy.column_types import TargetTypes
from etl.policy.schema_changes import RawTable
from etl.postgres import sessions
from etl.replicate.table import Task, replicate_table
from etl.source.catalog import Catalog
from etl.source.session import Source
from etl.target.raw_tables import read_raw_tables
from etl.target.writer import Writer


def record_missing_tables(
    control: Connection, run_id: int, found: Catalog, known: Collection[str], notice: Callable[[str], None]
) -> None:
    """Say once of each table that was replicated and is not among the source's any more, that it is gone."""
    present = {table.name for table in found.tables} | found.refusals.keys()
    missing = [name for name in known if name not in present]
    for name in runs.record_missing_tables(control, run_id, missing):
        notice(
            f"{name} is gone from the source, or left out in tables.yml: raw.{name} stays as it is; drop it when "
            "nobody reads it (a table that was renamed is loaded under its new name)"
        )


@dataclass
class Attempts:
    """Works through the tables of one run until each has succeeded or failed for good."""

    settings: Settings
    control: Connection
    run_id: int
    table_names: Sequence[str]
    types: TargetTypes
    observe: Observer
    options: RunOptions
    opened: tuple[Source, Catalog] | None  # for the first attempt; the others open their own
    shared_table: str | None = None  # the one table to work on, where other processes share the run
    results: dict[str, TableResult] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, EtlError] = field(default_factory=dict)  # the last error of each table to try again
    unfinished: set[str] = field(default_factory=set)  # tables whose time at the last snapshot was over
    positions: dict[str, Position] = field(default_factory=dict)  # where reading a whole table was cut
    retries: int = 0
    attempt_error: EtlError | None = None  # of the last attempt, when it was that of no table
    has_started: bool = False  # a table, at the present snapshot
    notices: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> tuple[TableResult, ...]:
        """Try until nothing is left that may succeed later; going on at a new snapshot is not a retry."""
        retrying = Retrying(
            stop=stop_after_attempt(self.settings.max_attempts),
            wait=wait_exponential_jitter(multiplier=0.5, max=30),
            before_sleep=self._count_retry,
            retry=retry_if_result(bool),
            retry_error_callback=lambda _: False,
        )
        retrying(self._attempt)
        for name, error in list(self.errors.items()):
            self._fail(name, error)
        return tuple(self.results[name] for name in sorted(self.results))

    def _count_retry(self, _: RetryCallState) -> None:
        self.retries += 1

    def _attempt(self) -> bool:
        """Replicate what is pending; tell whether something is left that may succeed later."""
        self.errors = {}
        try:
            self._replicate_at_new_snapshot()
            while self.unfinished:
                self._replicate_at_new_snapshot()
        except (UnavailableError, TableError) as error:
            is_last = self.retries + 1 >= self.settings.max_attempts
            if self.control.closed or is_last or not error.is_transient:
                raise
            self.attempt_error = error
            self._notice(f"attempt {self.retries + 1} failed, trying again: {error}")
            return True
        return bool(self.errors)

    def _replicate_at_new_snapshot(self) -> None:
        self.unfinished, self.has_started = set(), False
        opened, self.opened = self.opened, None
        with (
            opened[0] if opened else Source(self.settings) as source,
            closing(self._open_writers()) as writers,
        ):
            found = opened[1] if opened else source.read_catalog(self.types, self.table_names)
            for notice in found.notices:
                self._notice(notice)
            for name, reason in found.refusals.items():
                if name not in self.results:
                    self._fail(name, TableError(reason))
            progress = read_progress(self.control)
            if not self.table_names:
                record_missing_tables(self.control, self.run_id, found, progress, self._notice)
            pending = [table for table in found.tables if table.name not in self.results.keys() | self.errors.keys()]
            tasks = _largest_first(self._prepare(source, pending, progress))
            with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="table") as pool:
                try:
                    for future in [pool.submit(self._replicate, source, writers, task) for task in tasks]:
                        future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # tables at work end their statement in hand
                    raise

    def _open_writers(self) -> sessions.Sessions:
        """Return the sessions that write; a shared run's has the lock on its table before anything is read of it."""
        if self.shared_table is None:
            return sessions.Sessions(partial(sessions.connect_target, self.settings))
        writers = sessions.Sessions(partial(_connect_table_writer, self.settings, self.shared_table))
        with writers.take():
            return writers

    def _prepare(self, source: Source, tables: Sequence[Table], progress: Mapping[str, Progress]) -> list[Task]:
        """Take the points, wait at the fence, take the snapshot, and return what there is to do at it."""
        counters = source.read_counters(tables)
        points, errors = source.take_points(tables)
        for name, error in errors.items():
            self._postpone_or_fail(name, error)
        reconciled = read_counters(self.control)
        raw = read_raw_tables(self.control)
        known = [point for table in tables for point in progress.get(table.name, Progress()).points]
        activity = source.drain([*known, *points.values()])
        source.export_snapshot({table.name for table in tables} - errors.keys())
        return [
            Task(
                table=table,
                progress=progress.get(table.name, Progress()),
                point=points.get(table.name),
                activity=activity,
                raw=raw.get(table.name, RawTable()),
                counters=counters.get(table.name),
                reconciled=reconciled.get(table.name),
                options=self.options,
                position=self.positions.get(table.name),
            )
            for table in tables
            if table.name not in errors
        ]

    def _replicate(self, source: Source, writers: sessions.Sessions, task: Task) -> None:
        try:
            self._replicate_table(source, writers, task)
        finally:
            source.leave_snapshot(task.table.name)

    def _replicate_table(self, source: Source, writers: sessions.Sessions, task: Task) -> None:
        table, started = task.table, time.monotonic()
        if self.has_started and source.is_expired:
            self.unfinished.add(table.name)
            return
        self.has_started = True
        self.observe(Event(kind="table_started", table_name=table.name, estimated_rows=_expected_rows(task)))
        try:
            if self.attempt_error:
                with self.lock:
                    runs.record_retry(self.control, self.run_id, table.name, str(self.attempt_error), self.retries)
            with writers.take() as session:
                writer = Writer(session, table, self.run_id, task.raw)
                writer.start_table(
                    source.snapshot, task.progress.watermark, fence_wait_seconds=source.fence_wait_seconds
                )
                outcome = replicate_table(source, writer, task, self._count, range_blocks=self.settings.range_blocks)
        except EtlError as error:
            self._postpone_or_fail(table.name, error)
            return
        with self.lock:
            self.seconds[table.name] = self.seconds.get(table.name, 0.0) + time.monotonic() - started
        if outcome.is_complete:
            self._succeed(table.name, outcome)
        else:
            self._go_on_later(table.name, outcome)

    def _succeed(self, name: str, outcome: Outcome) -> None:
        result = TableResult(
            table_name=name,
            status="succeeded",
            counts=self.counts.get(name, Counts()),
            watermark=outcome.progress.watermark,
            seconds=self.seconds[name],
            retries=self.retries,
        )
        with self.lock:
            self.results[name] = result
        self.observe(Event(kind="table_finished", table_name=name, result=result))

    def _go_on_later(self, name: str, outcome: Outcome) -> None:
        with self.lock:
            self.unfinished.add(name)
            if outcome.position:
                self.positions[name] = outcome.position
        self.observe(Event(kind="table_continued", table_name=name))

    def _count(self, event: Event) -> None:
        """Add up a table's batches over all attempts, and pass the event on; what is said, once a run."""
        if event.kind == "notice":
            self._notice(event.message)
            return
        if event.table_name and event.counts:
            with self.lock:
                self.counts[event.table_name] = self.counts.get(event.table_name, Counts()) + event.counts
        self.observe(event)

    def _postpone_or_fail(self, name: str, error: EtlError) -> None:
        if not error.is_transient or self.retries + 1 >= self.settings.max_attempts:
            self._fail(name, error)
            return
        with self.lock:
            self.errors[name] = error
            runs.record_retry(self.control, self.run_id, name, str(error), self.retries + 1)
        self.observe(Event(kind="table_retried", table_name=name, message=str(error)))

    def _notice(self, message: str) -> None:
        """Say something once a run."""
        with self.lock:
            is_new = message not in self.notices
            self.notices.add(message)
        if is_new:
            self.observe(Event(kind="notice", message=message))

    def _fail(self, name: str, error: EtlError) -> None:
        result = TableResult(
            table_name=name,
            status="failed",
            counts=self.counts.get(name, Counts()),
            retries=self.retries,
            error=str(error),
        )
        with self.lock:
            self.errors.pop(name, None)
            self.results[name] = result
            runs.fail_table(self.control, self.run_id, result)
        self.observe(Event(kind="table_finished", table_name=name, result=result))


def _connect_table_writer(settings: Settings, table_name: str) -> Connection:
    """Open a session on the target that alone writes this table, among the processes that share a run."""
    connection = sessions.connect_target(settings)
    try:
        locks.lock_table(connection, table_name, settings.lock_wait_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _expected_rows(task: Task) -> int | None:
    """Return how many rows a person may expect, where that can be told: the whole table is read."""
    return task.table.estimated_rows if task.progress.watermark is None else None


def _largest_first(tasks: Sequence[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: task.table.estimated_rows, reverse=True)
