"""The write side: the session that writes one table, and the transactions that it opens. Begin at `Writer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError, TargetChangedError, TargetError
from etl.ledger import runs
from etl.ledger.builds import read_built_run
from etl.ledger.net_scans import forget_marks, renew_scans
from etl.ledger.progress import save_counters, save_partial_progress, save_progress, save_refusal
from etl.model import META_COLUMNS, Counts, Progress, Snapshot, Table
from etl.policy.deletes import Counters
from etl.policy.net import Slice
from etl.policy.schema_changes import Fit, fit_new_table
from etl.policy.source_identity import SourceChangeKind
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import transaction
from etl.target import raw_tables, statements
from etl.target.batch import Batch
from etl.target.views import detached_views

# SQLSTATEs of statements on a relation, column or constraint that is missing, or of another kind than expected.
OF_MISSING_OBJECTS = ("3F000", "42703", "42809", "42P01", "42P10")
# Asked at a snapshot, which shows a table that was replaced or rewritten since as empty.
IS_AS_IT_WAS = """
    select c.relfilenode = pg_catalog.pg_relation_filenode(c.oid)
    from pg_catalog.pg_class as c
    where c.oid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
"""


class Writer:
    """A session that writes one table, in transactions that first check that the run still holds the target."""

    def __init__(
        self,
        connection: Connection,
        table: Table,
        run_id: int,
        *,
        fit: Fit | None = None,
        progress_of_changes: Progress | None = None,
    ) -> None:
        self._connection = connection
        self.run_id = run_id
        self._fit = fit or fit_new_table(table)
        self.table = self._fit.table
        self._progress_of_changes = progress_of_changes
        self._are_changes_made = False

    def fitted(self, fit: Fit, progress: Progress) -> Writer:
        """Return a writer whose first batch changes the raw table as planned.

        `progress` is stored with the changes: if the run fails after them, the next run reads from there.
        """
        return Writer(self._connection, fit.table, self.run_id, fit=fit, progress_of_changes=progress)

    def save_progress(self, progress: Progress) -> None:
        """Store the progress of a table that is not complete yet."""
        with self.transaction() as cursor:
            save_partial_progress(cursor, self.run_id, self.table, progress)

    def save_refusal(self, refusal: str) -> None:
        """Store why the source of the table is refused until a person settles it."""
        with self.session() as cursor:
            save_refusal(cursor, self.table.name, refusal)

    def forget_scans(self) -> None:
        """Have the next run compare all rows of the table."""
        with self.session() as cursor:
            forget_marks(cursor, self.table.name)

    def settle_source(self, progress: Progress, kind: SourceChangeKind, detail: str) -> None:
        """Store the progress on a source with which all rows were compared, and record that its identity changed."""
        with self.transaction() as cursor:
            runs.record_change(cursor, self.run_id, self.table.name, kind, detail)
            save_progress(cursor, self.run_id, self.table, progress)

    @contextmanager
    def open_batch(self) -> Iterator[Batch]:
        """Open the transaction of a batch; it commits at the end of the block, with the counts for the ledger."""
        with self.transaction() as cursor:
            cursor.execute("set constraints all immediate")
            if not self._are_changes_made:
                self._make_changes(cursor)
            batch = Batch(cursor, self.table, self.run_id, self._fit.types_after)
            yield batch
            runs.add_batch(cursor, self.run_id, self.table.name, batch.counts)
        self._are_changes_made = True

    def _make_changes(self, cursor: Cursor) -> None:
        """Change the raw table as planned, in the transaction of the first rows that need it."""
        changes = self._fit.changes
        if not changes:
            return
        raw = statements.raw_table(self.table.name)
        widened = [change for change in changes if change.kind == "column_widened"]
        with detached_views(cursor, raw, f"raw.{self.table.name}") if widened else contextlib.nullcontext():
            for change in widened:
                cursor.execute(statements.widen_column(self.table, change.column_name))
        for change in changes:
            if change.kind == "column_added":
                cursor.execute(statements.add_column(self.table, change.column_name))
        runs.record_changes(cursor, self.run_id, self.table.name, changes)
        if self._progress_of_changes:
            save_partial_progress(cursor, self.run_id, self.table, self._progress_of_changes)

    def save_check(self, progress: Progress, *, counters: Counters | None, renewed: Slice | None) -> None:
        """Store that the content of the table was checked.

        `counters` is what the source counted before the snapshot at which keys were compared. `renewed` is the whole
        table, where every row was read or compared at one snapshot.
        """
        with self.transaction() as cursor:
            save_partial_progress(cursor, self.run_id, self.table, progress)
            if counters:
                save_counters(cursor, self.run_id, self.table.name, counters)
            if renewed:
                renew_scans(cursor, self.run_id, self.table.name, renewed)

    def bury_rows(self, keys: sql.Composable) -> Counts:
        """Turn the rows whose keys a relation of this session holds into tombstones, and count them in the ledger."""
        with self.transaction() as cursor:
            cursor.execute(statements.bury_rows(self.table, keys, self.run_id))
            counts = Counts(deleted=cursor.rowcount)
            runs.add_batch(cursor, self.run_id, self.table.name, counts)
        return counts

    def purge_tombstones(self, days: float) -> None:
        """Delete tombstones older than `days` that every incremental dbt model has read."""
        with self.transaction() as cursor:
            run_id = read_built_run(cursor)
            if run_id is not None:
                cursor.execute(statements.purge_tombstones(self.table, days, run_id))

    def start_table(self, snapshot: Snapshot, watermark: str | None, *, fence_wait_seconds: float = 0.0) -> None:
        """Record that the work on this table begins, or begins again."""
        with self.session() as cursor:
            runs.start_table(
                cursor,
                self.run_id,
                self.table.name,
                watermark=watermark,
                snapshot=snapshot.name,
                fence_wait_seconds=fence_wait_seconds,
            )

    def finish_table(self, watermark: str | None) -> None:
        """Record that the repair of this table is done; its watermark stays."""
        with self.transaction() as cursor:
            runs.finish_table(cursor, self.run_id, self.table.name, watermark)

    @contextmanager
    def at_snapshot(self, snapshot: str) -> Iterator[Cursor]:
        """Open a transaction that reads the target at an exported snapshot; it commits, so temporary tables stay.

        Raises TableError when the snapshot no longer shows the raw table as it is.
        """
        with (
            self._errors(),
            transaction(self._connection),
            self._connection.cursor() as cursor,
        ):
            cursor.execute("set transaction isolation level repeatable read")
            cursor.execute("set transaction snapshot %s", (snapshot,))
            cursor.execute(statements.lock_raw(self.table))
            cursor.execute(IS_AS_IT_WAS, (self.table.name,))
            if cursor.fetchone() != (True,):
                raise TableError(
                    f"raw.{self.table.name} was recreated or changed while tables were compared: compare again"
                )
            yield cursor

    @contextmanager
    def session(self) -> Iterator[Cursor]:
        """Yield a cursor outside any transaction."""
        with self._errors(), self._connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Open a transaction that commits at the end of the block, if the run still holds the target."""
        with (
            self._errors(),
            transaction(self._connection),
            self._connection.cursor() as cursor,
        ):
            runs.guard_run(cursor, self.run_id)
            yield cursor

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the errors of the target; one that a change of the raw table by somebody else explains says so."""
        try:
            with errors_of("target", self.table.label):
                yield
        except TargetError as error:
            change = self._find_change() if error.sqlstate in OF_MISSING_OBJECTS else None
            if change is None:
                raise
            raise TargetChangedError(
                f"raw.{self.table.name} {change} by another session meanwhile: run again, which loads a raw table that "
                "is missing"
            ) from error

    def _find_change(self) -> str | None:
        """Return what has happened to the raw table since it was described; None if it is as expected.

        Raises TableError when its schema is missing, which no retry helps.
        """
        with errors_of("target", self.table.label), self._connection.cursor() as cursor:
            found = raw_tables.read_column_types(cursor, self.table.name)
            has_key = raw_tables.has_key(cursor, self.table.name, self.table.key)
            if not found and not raw_tables.has_schema(cursor):
                raise TableError(
                    f"{self.table.label}: schema raw is missing on the target: create it, with the grants of "
                    "docs/operations.md, then run again"
                )
        if not found:
            return "was dropped or renamed"
        lost = [name for name in (*self._fit.types, *META_COLUMNS) if name not in found]
        if lost:
            return f"was changed (it has no column {', '.join(dict.fromkeys(lost))})"
        return None if has_key else "was changed (it has no primary key as on the source)"
