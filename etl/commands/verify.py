"""Compares source and target by content, and repairs what differs if asked to.

The target is read at one snapshot and the source at a later one, so a run may be in progress: it changes neither.
Source rows at or above the watermark are pending, because the next run reads them anyway. Begin at `verify`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.commands.attempts import describe_absence
from etl.compare.differences import (
    Difference,
    DifferenceKind,
    Differences,
    find_changed_columns,
    find_differences,
    list_differences,
)
from etl.compare.verdict import Example, Verdict, describe
from etl.config import Settings
from etl.errors import EtlError, TableError, UnavailableError
from etl.ledger import locks, runs
from etl.ledger.progress import read_progress
from etl.model import Activity, Counts, Progress, Snapshot, Table
from etl.policy import net
from etl.policy.column_types import TargetTypes
from etl.policy.deletes import Counters, check_fraction
from etl.policy.schema_changes import Fit, RawTable, describe_changes, fit_table
from etl.policy.source_identity import Judgement, judge_source
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import export_snapshot
from etl.replicate.checks import check_source
from etl.replicate.exchange import Exchange
from etl.replicate.reconcile import repair
from etl.replicate.task import advance
from etl.results import Event, Observer, TableResult, ignore
from etl.source.reader import Reader
from etl.source.session import Points, Source
from etl.target.raw_tables import read_known_tables, read_raw_tables
from etl.target.types import read_types
from etl.target.writer import Writer

MAX_EXAMPLES = 10  # per table, of each kind


def verify(
    settings: Settings,
    table_names: Sequence[str] = (),
    *,
    observe: Observer = ignore,
    is_repair: bool = False,
    is_adoption: bool = False,
) -> tuple[Verdict, ...]:
    """Compare the configured tables, or those named; with `is_repair`, repair what differs and compare that again.

    With `is_adoption`, also compare tables whose source is refused; each table of which both sides are equal, or were
    made equal by a repair, goes on from the source as it is now. A repair or an adoption is a run of its own, and
    upgrades an older ledger. Raises ConfigurationError for a ledger of a version that this
    release does not know, UnavailableError when nothing can be compared, LockHeldError when a run in progress prevents
    a repair or an adoption.
    """
    with closing(sessions.connect_target(settings)) as control:
        if not runs.has_ledger(control, may_be_older=is_repair or is_adoption):
            raise UnavailableError(
                f"the target {settings.target_url.address} holds no replicated tables: run `etl run` first"
            )
        verification = _Verification(settings, read_types(control), observe)
        if is_repair or is_adoption:
            return verification.work(control, table_names, is_repair=is_repair, is_adoption=is_adoption)
        return verification.compare(table_names, _Work())


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What to do with a table, in addition to comparing it."""

    run_id: int = 0  # 0: nothing is written
    is_repair: bool = False
    is_adoption: bool = False


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """The snapshots that are compared, and the fence before that of the source; it is needed to adopt a source."""

    of_target: str
    of_source: Snapshot
    counters: Mapping[str, Counters]
    points: Points
    activity: Activity | None


@dataclass(frozen=True)
class _Verification:
    settings: Settings
    types: TargetTypes
    observe: Observer

    def compare(self, table_names: Sequence[str], work: _Work) -> tuple[Verdict, ...]:
        """Compare tables at one snapshot of each side; then repair what differs, or adopt the source, if asked to."""
        with (
            closing(sessions.connect_target(self.settings)) as holder,
            closing(sessions.Sessions(partial(sessions.connect_target, self.settings))) as writers,
            Source(self.settings) as source,
        ):
            with errors_of("target", "exporting a snapshot"), holder.cursor() as cursor:
                of_target = export_snapshot(cursor)
            progress, raw = read_progress(holder), read_raw_tables(holder)
            found = source.read_catalog(self.types, table_names, read_known_tables(holder))
            missing = [table for table in found.absent if table.kind == "table_missing"]
            uncompared = [describe_absence(table) for table in missing if raw.get(table.name, RawTable()).exists]
            for remark in (*found.left_out, *uncompared):
                self._say(remark)
            moment = _reach_moment(source, found.tables, of_target, work)

            def compare_one(table: Table) -> Verdict:
                stored = progress.get(table.name, Progress())
                self.observe(Event(kind="table_started", table_name=table.name, estimated_rows=table.estimated_rows))
                try:
                    with writers.take() as session:
                        judgement = _judge(Writer(session, table, work.run_id), stored, moment.of_source, work)
                        if judgement.action == "compare" and not work.is_adoption:
                            self._say(f"{table.label}: {judgement.finding}: the next run compares all columns")
                        fit = _fit(table, raw.get(table.name, RawTable()))
                        with source.open_reader(table, moment.of_source) as reader:
                            writer = Writer(session, table, work.run_id, fit=fit)
                            counts: list[Counts] = []
                            exchange = Exchange(reader=reader, writer=writer, on_commit=counts.append, say=self._say)
                            verdict = _compare(exchange, moment, stored, judgement, work)
                            repaired = sum(each.inserted + each.updated + each.deleted for each in counts)
                            verdict = replace(verdict, repaired=repaired)
                except EtlError as error:
                    verdict = Verdict(table_name=table.name, error=str(error))
                finally:
                    source.leave_snapshot(table.name)
                self.observe(Event(kind="table_compared", table_name=table.name, message=describe(verdict)))
                return verdict

            with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="table") as pool:
                compared = list(pool.map(compare_one, found.tables))
        refused = [Verdict(table_name=name, error=reason) for name, reason in found.refusals.items()]
        return tuple(sorted([*compared, *refused], key=lambda verdict: verdict.table_name))

    def _say(self, remark: str) -> None:
        self.observe(Event(kind="notice", message=remark))

    def work(
        self, control: Connection, table_names: Sequence[str], *, is_repair: bool, is_adoption: bool
    ) -> tuple[Verdict, ...]:
        """Repair what differs, or adopt the source, as a run of its own; compare the repaired tables again."""
        with locks.run_lock(control, self.settings.lock_wait_seconds):
            runs.prepare(control, self.settings.lock_wait_seconds)
            run_id = runs.begin_run(control)
            error: str | None = "interrupted"
            try:
                first = self.compare(table_names, _Work(run_id=run_id, is_repair=is_repair, is_adoption=is_adoption))
                repaired = {
                    found.table_name: found
                    for found in first
                    if found.repaired or (is_repair and not found.is_equal and not found.error)
                }
                again = self.compare(tuple(repaired), _Work()) if repaired else ()
                failed = [found for found in first if found.error]
                for found in failed:
                    result = TableResult(table_name=found.table_name, status="failed", error=found.error)
                    runs.fail_table(control, run_id, result)
                error = f"failed: {', '.join(found.table_name for found in failed)}" if failed else None
            finally:
                runs.end_run(control, run_id, error)
        second = {}
        for verdict in again:
            before = repaired[verdict.table_name]
            second[verdict.table_name] = replace(verdict, repaired=before.repaired, is_adopted=before.is_adopted)
        return tuple(second.get(verdict.table_name, verdict) for verdict in first)


def _reach_moment(source: Source, tables: Sequence[Table], of_target: str, work: _Work) -> _Moment:
    """Export the source's snapshot, after passing the fence if a source may be adopted at it."""
    counters: Mapping[str, Counters] = {}
    points, activity = Points(), None
    if work.is_adoption:
        counters = source.read_counters(tables)
        points = source.take_points(tables)
        activity = source.drain(list(points.by_table.values())).activity
    of_source = source.export_snapshot({table.name for table in tables})
    return _Moment(of_target=of_target, of_source=of_source, counters=counters, points=points, activity=activity)


def _judge(writer: Writer, stored: Progress, snapshot: Snapshot, work: _Work) -> Judgement:
    """Return whether the source is the one of the raw table. Raises TableError if not, unless it may be adopted."""
    if work.is_adoption:
        return judge_source(writer.table, stored, snapshot)
    return check_source(writer, stored, snapshot)


def _fit(table: Table, raw: RawTable) -> Fit:
    """Return how the source's table fits the raw table. Raises TableError when a run must follow changes first."""
    if not raw.exists:
        raise TableError(f"expected raw.{table.name} on the target, found none: run `etl run` first")
    fit = fit_table(table, raw)
    if fit.changes:
        changes = describe_changes(fit.changes)
        raise TableError(f"{table.label} has changed since it was replicated: {changes}: run `etl run` first")
    return fit


def _compare(exchange: Exchange, moment: _Moment, stored: Progress, judgement: Judgement, work: _Work) -> Verdict:
    """Compare one table; then repair it, or adopt its source, if asked to.

    To adopt a source, all rows have to be equal: the stored watermark says nothing about it, so no row is pending.
    """
    reader, writer = exchange.reader, exchange.writer
    table = writer.table
    is_adopted = work.is_adoption and judgement.action != "continue"
    known = stored if stored.column == table.watermark else Progress()
    watermark, new = known.watermark, net.find_new(table, known, reader.snapshot)
    with writer.at_snapshot(moment.of_target) as cursor:
        found = find_differences(
            reader, cursor, table, table.columns, watermark, since_xid=new, is_pending_apart=not is_adopted
        )
        examples = _examples(reader, cursor, table, found)
    if table.config.deletes == "none":  # deleted rows stay in raw
        found = replace(found, extra=0)
        examples = tuple(example for example in examples if example.kind != "extra")
    if work.is_repair and not found.are_none:
        check_fraction(table, found.extra, found.raw_rows, "reset" if is_adopted else "run")
        writer.start_table(reader.snapshot, watermark)
        repair(exchange, found)
        writer.finish_table(watermark)
    verdict = Verdict(
        table_name=table.name,
        source_rows=found.source_rows,
        raw_rows=found.raw_rows,
        missing=found.missing,
        extra=found.extra,
        changed=found.changed,
        rejected=found.rejected + found.not_held,
        pending=found.pending,
        examples=examples,
    )
    if not is_adopted or not (verdict.is_equal or work.is_repair):
        return verdict
    _adopt_source(exchange, moment, stored, judgement)
    return replace(verdict, is_adopted=True)


def _adopt_source(exchange: Exchange, moment: _Moment, stored: Progress, judgement: Judgement) -> None:
    """Store that the raw table, which is now equal to the source at its snapshot, goes on from there."""
    writer, points = exchange.writer, moment.points
    table = writer.table
    if table.name in points.errors:
        raise points.errors[table.name]
    assert moment.activity is not None
    progress = advance(table, Progress(), moment.of_source, points.by_table.get(table.name), moment.activity)
    writer.start_table(moment.of_source, stored.watermark)
    writer.settle_source(progress, "source_adopted", f"{judgement.finding}: both sides are equal")
    if table.name in moment.counters:
        counters = moment.counters[table.name]
        renewed = net.whole_slice(table, moment.of_source, counters)
        writer.save_check(progress, counters=counters, renewed=renewed)


def _examples(reader: Reader, cursor: Cursor, table: Table, found: Differences) -> tuple[Example, ...]:
    if found.are_none:
        return ()
    examples: list[Example] = []
    for kind in get_args(DifferenceKind):
        first: list[Difference] = next(list_differences(cursor, table, (kind,), limit=MAX_EXAMPLES), [])
        keys = [each.key for each in first]
        columns = find_changed_columns(reader, cursor, table, keys) if kind == "changed" and keys else {}
        examples += [
            Example(kind=kind, key=dict(zip(table.key, key, strict=True)), columns=columns.get(key, ())) for key in keys
        ]
    return tuple(examples)
