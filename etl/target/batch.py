"""Writes one batch, inside a transaction that the writer opens and commits. Begin at `Batch`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

from etl.errors import RowRefusedError, TableError, TargetChangedError
from etl.ledger import rejects
from etl.ledger.net_scans import save_scan
from etl.ledger.progress import save_progress
from etl.model import Counts, Progress, Table
from etl.policy.net import Slice
from etl.postgres.copy_pipe import CopyOut, Stream, copy_in, stream
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import savepoint
from etl.target import raw_tables, statements

# A header of 19 bytes and a trailer of 2 ("Binary Format" of COPY in the manual).
EMPTY_BINARY_BYTES = 21


class Batch:
    """One batch in its transaction: rows are merged in parts, and a part that fails is undone without the others."""

    def __init__(self, cursor: Cursor, table: Table, run_id: int, types: Mapping[str, str]) -> None:
        self._cursor = cursor
        self._table = table
        self._run_id = run_id
        self._types = types  # expected types of the raw table's columns
        self._has_rows = False  # so the temporary table exists
        self._refusals: dict[tuple[str, ...], RowRefusedError] = {}
        self._has_own_equality = any(table.column(name).raw_equality for name in table.key)
        self.respelled: list[tuple[str, ...]] = []  # keys of raw rows that got an equal key of another spelling
        self.counts = Counts()

    def merge(self, copy_out: CopyOut) -> Counts:
        """Merge rows; raises RowRefusedError, with this part undone, when the target refuses any of them."""
        label = self._table.label
        with stream(copy_out) as rows, errors_of("target", label):
            if not has_rows(self._table, rows):
                counts = Counts(bytes=rows.size)
            else:
                with savepoint(self._cursor, "part"), errors_of("target", label):
                    counts = self._merge(rows)
                self._has_rows = True
        self.counts += counts
        return counts

    def reject(self, key: Sequence[str], text: bytes, refusal: RowRefusedError) -> None:
        """Store a row that the target refused; raises TableError when the table has more than max_rejected_rows."""
        refused_by = rejects.add_reject(
            self._cursor, self._run_id, self._table.name, key=key, text=text, refusal=refusal
        )
        self._refusals[tuple(key)] = refusal
        if refused_by != self._run_id:  # a row that a run reads twice counts once
            self.counts += Counts(read=1, rejected=1)
        if refused_by is None:
            self._check_rejects()

    def clear_rejects(self, retried: Iterable[tuple[str, ...]]) -> None:
        """Delete the stored rejects among the `retried` keys that this batch did not refuse again.

        Raises TableError when more than max_rejected_rows are left.
        """
        rejects.clear_rejects(self._cursor, self._table.name, set(retried) - self._refusals.keys())
        self._check_rejects()

    def save_progress(self, progress: Progress) -> None:
        """Store the progress of a table that this batch completes."""
        save_progress(self._cursor, self._run_id, self._table, progress)

    def save_scan(self, scanned: Slice, found: int) -> None:
        """Store that this batch ends a net scan, which found rows that the watermark column had not shown."""
        save_scan(self._cursor, self._run_id, self._table.name, scanned, found)

    def _check_rejects(self) -> None:
        limit = self._table.config.max_rejected_rows
        is_within = rejects.count_rejects(self._cursor, self._table.name) <= limit
        if is_within or not self._refusals:
            return
        key, refusal = list(self._refusals.items())[-1]
        raise TableError(
            f"{self._table.label}: the target refuses more than max_rejected_rows = {limit} rows, the last one with "
            f"{_describe_key(self._table, key)}: {refusal}; fix the rows or raw.{self._table.name}, or raise "
            "max_rejected_rows in tables.yml"
        )

    def _merge(self, rows: Stream) -> Counts:
        if self._has_rows:
            self._cursor.execute("truncate pg_temp.etl_batch")
        else:
            self._check_types()
            self._cursor.execute(statements.create_batch(self._table))
        copy = statements.copy_in(self._table, statements.BATCH, freeze=False)
        read = copy_in(self._cursor, copy, rows)
        if self._has_own_equality:
            self._cursor.execute(statements.respelled_keys(self._table))
            self.respelled += self._cursor.fetchall()
        self._cursor.execute(statements.merge(self._table, self._run_id))
        inserted, updated = self._cursor.fetchone() or (0, 0)
        return Counts(read=read, inserted=inserted, updated=updated, bytes=rows.size)

    def _check_types(self) -> None:
        """Lock the raw table against changes; raise TargetChangedError when its columns are not as expected."""
        self._cursor.execute(statements.lock_raw(self._table))
        found = raw_tables.read_column_types(self._cursor, self._table.name)
        changed = [name for name, kind in self._types.items() if found.get(name) != kind]
        if changed:
            raise TargetChangedError(
                f"raw.{self._table.name} was changed by another session during the run ({', '.join(changed)}): "
                "run again"
            )


def has_rows(table: Table, rows: Stream) -> bool:
    """Return whether a stream in the table's COPY format has rows; they can still be read."""
    return not rows.ends_within(EMPTY_BINARY_BYTES if table.is_binary else 0)


def copy_rows(cursor: Cursor, table: Table, copy_out: CopyOut, *, into: Composable, freeze: bool) -> tuple[int, int]:
    """Copy rows into a table of the target; return the numbers of rows and bytes."""
    statement = statements.copy_in(table, into, freeze=freeze)
    with stream(copy_out) as rows:
        return copy_in(cursor, statement, rows), rows.size


def _describe_key(table: Table, key: Sequence[str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(table.key, key, strict=True))
