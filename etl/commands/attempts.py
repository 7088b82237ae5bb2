"""Replicates the tables of a run: they share a snapshot, and those that failed are retried.

An attempt takes the points of the fence, lists open transactions, exports one snapshot and replicates the pending
tables at it. Another snapshot, with points of its own, follows for tables that failed with a transient error, that were
rewritten meanwhile, or that were not finished when the snapshot expired. Begin at `Attempts`.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from psycopg2.extensions import connection as Connection
from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_exponential_jitter

from etl.config import Settings
from etl.errors import EtlError, TableError, UnavailableError
from etl.ledger import locks, runs
from etl.ledger.net_scans import read_slices
from etl.ledger.progress import read_counters, read_progress
from etl.model import Counts, Outcome, Position, Progress, RunOptions, Snapshot, Table
from etl.policy.column_types import TargetTypes
from etl.policy.deletes import Counters
from etl.policy.schema_changes import RawTable
from etl.postgres import sessions
from etl.replicate.table import replicate_table
from etl.replicate.task import Task
from etl.results import Event, Observer, TableResult
from etl.source.catalog import Catalog
from etl.source.lost_tables import AbsentTable
from etl.source.session import Source
from etl.target.raw_tables import read_known_tables, read_raw_tables
from etl.target.writer import Writer


def record_absences(control: Connection, run_id: int, found: Catalog, notice: Callable[[str], None]) -> None:
    """Record and report, once, each table that is not replicated any more, and each that is again."""
    absent = {table.name: table for table in found.absent}
    present = {table.name for table in found.tables} | found.refusals.keys()
    known = runs.read_absences(control)
    for name, table in absent.items():
        if known.get(name) != table.kind:
            runs.record_table_change(control, run_id, name, table.kind, f"{table.detail}; raw keeps its rows")
            notice(describe_absence(table))
    for name in sorted(present & known.keys()):
        detail = "on the source, and not left out in tables.yml, again"
        runs.record_table_change(control, run_id, name, "table_returned", detail)
        notice(f"{name} is {detail}")


def describe_absence(table: AbsentTable) -> str:
    """Return what has become of a table that is not replicated any more, and of its rows."""
    return f"{table.detail}; raw.{table.name} stays as it is: drop it once it is no longer read"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the attempts of a run have to do."""

    run_id: int
    table_names: Sequence[str]  # empty: all configured tables
    types: TargetTypes
    options: RunOptions
    shared_table: str | None = None  # the only table to replicate here, where several processes share the run


@dataclass(kw_only=True)
class _Work:
    """What a run knows about one table, over all attempts; only one thread at a time works on a table."""

    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    position: Position | None = None  # where reading of the whole table stopped
    is_unfinished: bool = False  # the last snapshot expired first
    error: EtlError | None = None  # of this attempt, if a retry may help
    result: TableResult | None = None

    @property
    def is_pending(self) -> bool:
        return self.result is None and self.error is None


class Attempts:
    """Replicates the tables of one run until each has succeeded or failed for good."""

    def __init__(self, settings: Settings, control: Connection, job: Job, observe: Observer) -> None:
        self._settings = settings
        self._control = control
        self._job = job
        self._observe = observe
        self._works: defaultdict[str, _Work] = defaultdict(_Work)
        self._retries = 0
        self._attempt_error: EtlError | None = None  # of the last attempt, if it belongs to no single table
        self._notices: set[str] = set()
        self._lock = threading.Lock()  # guards the control session and the notices, which threads share

    def run(self, source: Source, found: Catalog) -> tuple[TableResult, ...]:
        """Retry until no failed table may still succeed; continuing at a new snapshot is not a retry.

        The first attempt uses this source, which is open, and the catalog read from it, and closes the source.
        """
        opened = [(source, found)]
        retrying = Retrying(
            stop=stop_after_attempt(self._settings.max_attempts),
            wait=wait_exponential_jitter(multiplier=0.5, max=30),
            before_sleep=self._count_retry,
            retry=retry_if_result(bool),
            retry_error_callback=lambda _: False,
        )
        retrying(self._attempt, opened)
        for name, work in self._works.items():
            if work.error:
                self._fail(name, work.error)
        return tuple(work.result for _, work in sorted(self._works.items()) if work.result)

    def _count_retry(self, _: RetryCallState) -> None:
        self._retries += 1

    def _attempt(self, opened: list[tuple[Source, Catalog]]) -> bool:
        """Replicate the pending tables; return whether a retry may help."""
        for work in self._works.values():
            work.error = None
        try:
            self._replicate_at_new_snapshot(opened)
            while any(work.is_unfinished for work in self._works.values()):
                self._replicate_at_new_snapshot(opened)
        except (UnavailableError, TableError) as error:
            is_last = self._retries + 1 >= self._settings.max_attempts
            if self._control.closed or is_last or not error.is_transient:
                raise
            self._attempt_error = error
            self._notice(f"attempt {self._retries + 1} failed, retrying: {error}")
            return True
        return any(work.error for work in self._works.values())

    def _replicate_at_new_snapshot(self, opened: list[tuple[Source, Catalog]]) -> None:
        for work in self._works.values():
            work.is_unfinished = False
        first = opened.pop() if opened else None
        with (
            first[0] if first else Source(self._settings) as source,
            closing(self._open_writers()) as writers,
        ):
            found = first[1] if first else self._read_catalog(source)
            for notice in (*found.notices, *found.left_out):
                self._notice(notice)
            for name, reason in found.refusals.items():
                if not self._works[name].result:
                    self._fail(name, TableError(reason))
            progress = read_progress(self._control)
            if not self._job.table_names:
                record_absences(self._control, self._job.run_id, found, self._notice)
            self._fail_lost_tables(found)
            tables = [table for table in found.tables if self._works[table.name].is_pending]
            now = self._prepare(source, tables, progress)
            with ThreadPoolExecutor(self._settings.workers, thread_name_prefix="table") as pool:
                try:
                    for future in [pool.submit(self._replicate, source, writers, now, task) for task in now.tasks]:
                        future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # threads end after their current statement
                    raise

    def _read_catalog(self, source: Source) -> Catalog:
        return source.read_catalog(self._job.types, self._job.table_names, read_known_tables(self._control))

    def _fail_lost_tables(self, found: Catalog) -> None:
        """Fail the tables with which this run began and that are not on the source any more."""
        present = {table.name for table in found.tables}
        for name in [name for name, work in self._works.items() if work.is_pending and name not in present]:
            self._fail(name, TableError(f"{name} was dropped or renamed on the source during the run: run again"))

    def _open_writers(self) -> sessions.Sessions:
        """Return the pool of writing sessions; in a shared run, lock the table before anything is read."""
        if self._job.shared_table is None:
            return sessions.Sessions(partial(sessions.connect_target, self._settings))
        writers = sessions.Sessions(partial(_connect_table_writer, self._settings, self._job.shared_table))
        with writers.take():
            return writers

    def _prepare(self, source: Source, tables: Sequence[Table], progress: Mapping[str, Progress]) -> _Round:
        """Take the points, wait at the fence, export the snapshot, and return the tasks to do at it."""
        counters = source.read_counters(tables)
        target_now = sessions.read_clock(self._control, "target")
        points = source.take_points(tables)
        for name, error in points.errors.items():
            self._postpone_or_fail(name, error)
        reconciled = read_counters(self._control)
        slices = read_slices(self._control)
        raw = read_raw_tables(self._control)
        known = [point for table in tables for point in progress.get(table.name, Progress()).points]
        drain = source.drain([*known, *points.by_table.values()])
        snapshot = source.export_snapshot({table.name for table in tables} - points.errors.keys())
        tasks = [
            Task(
                table=table,
                progress=progress.get(table.name, Progress()),
                point=points.by_table.get(table.name),
                has_clock=points.has_clock,
                activity=drain.activity,
                raw=raw.get(table.name, RawTable()),
                counters=counters.get(table.name),
                reconciled=reconciled.get(table.name),
                slices=slices.get(table.name, ()),
                clock_ahead=_clock_ahead(counters.get(table.name), target_now),
                options=self._job.options,
                position=self._works[table.name].position,
            )
            for table in tables
            if table.name not in points.errors
        ]
        tasks.sort(key=lambda task: task.table.estimated_rows, reverse=True)
        return _Round(snapshot=snapshot, tasks=tasks, waited_seconds=drain.waited_seconds)

    def _replicate(self, source: Source, writers: sessions.Sessions, now: _Round, task: Task) -> None:
        try:
            self._replicate_table(source, writers, now, task)
        finally:
            source.leave_snapshot(task.table.name)

    def _replicate_table(self, source: Source, writers: sessions.Sessions, now: _Round, task: Task) -> None:
        table, work, started = task.table, self._works[task.table.name], time.monotonic()
        if now.has_started.is_set() and now.snapshot.is_expired:
            work.is_unfinished = True
            return
        now.has_started.set()
        self._observe(Event(kind="table_started", table_name=table.name, estimated_rows=_expected_rows(task)))
        try:
            if self._attempt_error:
                with self._lock:
                    runs.record_retry(
                        self._control, self._job.run_id, table.name, str(self._attempt_error), self._retries
                    )
            with writers.take() as session:
                writer = Writer(session, table, self._job.run_id)
                writer.start_table(now.snapshot, task.progress.watermark, fence_wait_seconds=now.waited_seconds)
                outcome = replicate_table(
                    source, now.snapshot, writer, task, self._count, range_blocks=self._settings.range_blocks
                )
        except EtlError as error:
            self._postpone_or_fail(table.name, error)
            return
        work.seconds += time.monotonic() - started
        if outcome.is_complete:
            self._succeed(table.name, outcome)
            return
        work.is_unfinished = True
        work.position = outcome.position or work.position
        self._observe(Event(kind="table_continued", table_name=table.name))

    def _succeed(self, name: str, outcome: Outcome) -> None:
        work = self._works[name]
        work.result = TableResult(
            table_name=name,
            status="succeeded",
            counts=work.counts,
            watermark=outcome.progress.watermark,
            seconds=work.seconds,
            retries=self._retries,
        )
        self._observe(Event(kind="table_finished", table_name=name, result=work.result))

    def _count(self, event: Event) -> None:
        """Add up a table's batches over all attempts, and pass the event on; pass each notice on once per run."""
        if event.kind == "notice":
            self._notice(event.message)
            return
        if event.table_name and event.counts:
            self._works[event.table_name].counts += event.counts
        self._observe(event)

    def _postpone_or_fail(self, name: str, error: EtlError) -> None:
        if not error.is_transient or self._retries + 1 >= self._settings.max_attempts:
            self._fail(name, error)
            return
        self._works[name].error = error
        with self._lock:
            runs.record_retry(self._control, self._job.run_id, name, str(error), self._retries + 1)
        self._observe(Event(kind="table_retried", table_name=name, message=str(error)))

    def _notice(self, message: str) -> None:
        """Report a notice, unless this run has reported it already."""
        with self._lock:
            is_new = message not in self._notices
            self._notices.add(message)
        if is_new:
            self._observe(Event(kind="notice", message=message))

    def _fail(self, name: str, error: EtlError) -> None:
        work = self._works[name]
        work.error = None
        work.result = TableResult(
            table_name=name,
            status="failed",
            counts=work.counts,
            retries=self._retries,
            error=str(error),
        )
        with self._lock:
            runs.fail_table(self._control, self._job.run_id, work.result)
        self._observe(Event(kind="table_finished", table_name=name, result=work.result))


@dataclass(frozen=True, kw_only=True)
class _Round:
    """The tasks to do at one snapshot."""

    snapshot: Snapshot
    tasks: Sequence[Task]  # the largest tables first
    waited_seconds: float  # at the fence
    has_started: threading.Event = field(default_factory=threading.Event)  # by a table: the first is always read


def _connect_table_writer(settings: Settings, table_name: str) -> Connection:
    """Open a session on the target that locks this table against the other processes of a shared run."""
    connection = sessions.connect_target(settings)
    try:
        locks.lock_table(connection, table_name, settings.lock_wait_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _clock_ahead(counters: Counters | None, target_now: dt.datetime) -> float:
    """Return how many seconds the source's clock is ahead of the target's, which was read just after the counters."""
    return (counters.listed_at - target_now).total_seconds() if counters else 0.0


def _expected_rows(task: Task) -> int | None:
    """Return how many rows will be read, which can be estimated only when the whole table is read."""
    return task.table.estimated_rows if task.progress.watermark is None else None
