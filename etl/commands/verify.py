"""Compares source and target by content, and repairs what differs if asked to.

The target is read at one snapshot and the source at a later one, so a run may be in progress: it changes neither.
Source rows at or above the watermark are pending, because the next run reads them anyway. Begin at `verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from etl.model import Counts, Event, Observer, Progress, Table, TableResult, ignore
from etl.policy.column_types import TargetTypes
from etl.policy.deletes import check_fraction
from etl.policy.schema_changes import Fit, RawTable, describe_changes, fit_table
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import export_snapshot
from etl.replicate.exchange import Exchange
from etl.replicate.reconcile import repair
from etl.source.reader import Reader
from etl.source.session import Source
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
) -> tuple[Verdict, ...]:
    """Compare the configured tables, or those named; with `is_repair`, repair what differs and compare that again.

    A repair upgrades an older ledger, as a run does. Raises ConfigurationError for a ledger of a version that this
    release does not know, UnavailableError when nothing can be compared, LockHeldError when a run in progress prevents
    a repair.
    """
    with closing(sessions.connect_target(settings)) as control:
        if not runs.has_ledger(control, may_be_older=is_repair):
            raise UnavailableError(
                f"the target {settings.target_url.address} holds no replicated tables: run `etl run` first"
            )
        verification = _Verification(settings, read_types(control), observe)
        if is_repair:
            return verification.repair(control, table_names)
        return verification.compare(table_names)


@dataclass(frozen=True)
class _Verification:
    settings: Settings
    types: TargetTypes
    observe: Observer

    def compare(self, table_names: Sequence[str], run_id: int | None = None) -> tuple[Verdict, ...]:
        """Compare tables at one snapshot of each side; with a run id, repair what differs."""
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
            of_source = source.export_snapshot({table.name for table in found.tables})

            def compare_one(table: Table) -> Verdict:
                watermark = _watermark(table, progress.get(table.name, Progress()))
                self.observe(Event(kind="table_started", table_name=table.name, estimated_rows=table.estimated_rows))
                try:
                    fit = _fit(table, raw.get(table.name, RawTable()))
                    with writers.take() as session, source.open_reader(table, of_source) as reader:
                        counts: list[Counts] = []
                        exchange = Exchange(
                            reader=reader,
                            writer=Writer(session, table, run_id or 0, fit=fit),
                            on_commit=counts.append,
                            say=self._say,
                        )
                        verdict = _compare(exchange, of_target, watermark, is_repair=run_id is not None)
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

    def repair(self, control: Connection, table_names: Sequence[str]) -> tuple[Verdict, ...]:
        """Repair what differs, as a run of its own, and compare the repaired tables again."""
        with locks.run_lock(control, self.settings.lock_wait_seconds):
            runs.prepare(control, self.settings.lock_wait_seconds)
            run_id = runs.begin_run(control)
            error: str | None = "interrupted"
            try:
                first = self.compare(table_names, run_id)
                repaired = {found.table_name: found for found in first if not found.is_equal and not found.error}
                again = self.compare(tuple(repaired)) if repaired else ()
                failed = [found for found in first if found.error]
                for found in failed:
                    result = TableResult(table_name=found.table_name, status="failed", error=found.error)
                    runs.fail_table(control, run_id, result)
                error = f"failed: {', '.join(found.table_name for found in failed)}" if failed else None
            finally:
                runs.end_run(control, run_id, error)
        second = {one.table_name: replace(one, repaired=repaired[one.table_name].repaired) for one in again}
        return tuple(second.get(verdict.table_name, verdict) for verdict in first)


def _watermark(table: Table, progress: Progress) -> str | None:
    return progress.watermark if progress.column == table.watermark else None


def _fit(table: Table, raw: RawTable) -> Fit:
    """Return how the source's table fits the raw table. Raises TableError when a run must follow changes first."""
    if not raw.exists:
        raise TableError(f"expected raw.{table.name} on the target, found none: run `etl run` first")
    fit = fit_table(table, raw)
    if fit.changes:
        changes = describe_changes(fit.changes)
        raise TableError(f"{table.label} has changed since it was replicated: {changes}: run `etl run` first")
    return fit


def _compare(exchange: Exchange, snapshot: str, watermark: str | None, *, is_repair: bool) -> Verdict:
    reader, writer = exchange.reader, exchange.writer
    table = writer.table
    with writer.at_snapshot(snapshot) as cursor:
        found = find_differences(reader, cursor, table, table.columns, watermark)
        examples = _examples(reader, cursor, table, found)
    if table.config.deletes == "none":  # deleted rows stay in raw
        found = replace(found, extra=0)
        examples = tuple(example for example in examples if example.kind != "extra")
    if is_repair and not found.are_none:
        check_fraction(table, found.extra, found.raw_rows)
        writer.start_table(reader.snapshot, watermark)
        repair(exchange, found)
        writer.finish_table(watermark)
    return Verdict(
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
