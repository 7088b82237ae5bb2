"""The write side: raw tables, batches and the copy pipe into them.

Values never pass through Python objects: `pipe` moves the bytes of COPY from one server to the other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

from etl import postgres, state, statements
from etl.config import Settings
from etl.errors import TableError
from etl.model import Counts, Progress, Table

# psycopg2 asks for 8 kB at a time unless told otherwise; a pipe holds 64 kB.
CHUNK_BYTES = 1 << 16

LIST_COLUMNS = """
    select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
    from pg_catalog.pg_attribute as a
    where a.attrelid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
        and a.attnum > 0 and not a.attisdropped
"""
LIST_TYPES = "select pg_catalog.format_type(oid, null) from pg_catalog.pg_type where typtype in ('b', 'r', 'm')"

CopyOut = Callable[[IO[bytes]], None]


def read_known_types(connection: Connection) -> frozenset[str]:
    """Return the names of the types that the target has, as format_type() writes them."""
    with postgres.errors_of("target", "reading its types"), connection.cursor() as cursor:
        cursor.execute(LIST_TYPES)
        return frozenset(row[0] for row in cursor)


@contextmanager
def open_writer(settings: Settings, table: Table, run_id: int) -> Iterator[Writer]:
    """Open a session that writes one table; it is closed at the end."""
    connection = postgres.connect_target(settings)
    try:
        yield Writer(connection, table, run_id)
    finally:
        connection.close()


class Writer:
    """Writes the rows of one table; each public call is one transaction."""

    def __init__(self, connection: Connection, table: Table, run_id: int) -> None:
        self._connection = connection
        self._table = table
        self._run_id = run_id
        self._has_batch_table = False

    def has_raw_table(self) -> bool:
        """Tell whether the raw table exists; raises TableError when it cannot hold the source's rows."""
        with postgres.errors_of("target", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(LIST_COLUMNS, (self._table.name,))
            found = dict(cursor.fetchall())
        if not found:
            return False
        _check_columns(self._table, found)
        return True

    def load_first(self, copy_out: CopyOut, progress: Progress) -> Counts:
        """Create the raw table with its rows, key and metadata, and store the progress."""
        table = self._table
        with self._batch() as cursor:
            cursor.execute(statements.create_raw(table))
            rows, size = self._copy(cursor, copy_out, into=statements.raw_table(table.name), freeze=True)
            cursor.execute(statements.complete_raw(table, self._run_id))
            cursor.execute(statements.analyze_raw(table))
            counts = Counts(read=rows, inserted=rows, bytes=size)
            state.add_batch(cursor, self._run_id, table.name, counts)
            state.save_progress(cursor, self._run_id, table.name, progress)
        return counts

    def merge_batch(self, copy_out: CopyOut, progress: Progress | None) -> Counts:
        """Merge one batch into the raw table.

        `progress` is stored in the same transaction if the batch turns out to be the last one, with fewer rows
        than a full batch; None while other parts of the table are still to come.
        """
        table = self._table
        with self._batch() as cursor:
            if self._has_batch_table:
                cursor.execute("truncate pg_temp.etl_batch")
            else:
                cursor.execute(statements.create_batch(table))
            rows, size = self._copy(cursor, copy_out, into=statements.BATCH, freeze=False)
            inserted, updated = self._merge(cursor) if rows else (0, 0)
            counts = Counts(read=rows, inserted=inserted, updated=updated, bytes=size)
            state.add_batch(cursor, self._run_id, table.name, counts)
            if progress is not None and rows < table.batch_rows:
                state.save_progress(cursor, self._run_id, table.name, progress)
        self._has_batch_table = True
        return counts

    def checksum(self) -> tuple[int, str]:
        """Return the number of rows that are not tombstones and a checksum of their text."""
        with postgres.errors_of("target", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statements.count_raw(self._table))
            rows, checksum = cursor.fetchone() or (0, "0")
        return rows, checksum

    @contextmanager
    def _batch(self) -> Iterator[Cursor]:
        with (
            postgres.errors_of("target", self._table.label),
            postgres.transaction(self._connection),
            self._connection.cursor() as cursor,
        ):
            state.guard_run(cursor, self._run_id)
            yield cursor

    def _copy(self, cursor: Cursor, copy_out: CopyOut, *, into: Composable, freeze: bool) -> tuple[int, int]:
        statement = statements.copy_in(self._table, into, freeze=freeze)
        size = pipe(copy_out, lambda file: cursor.copy_expert(statement, file, CHUNK_BYTES))
        return cursor.rowcount, size

    def _merge(self, cursor: Cursor) -> tuple[int, int]:
        cursor.execute(statements.merge(self._table, self._run_id))
        row = cursor.fetchone()
        assert row is not None
        return row[0], row[1]


def pipe(write: CopyOut, read: CopyOut) -> int:
    """Run `write` in a thread and `read` here, joined by a pipe; return the bytes moved.

    When `write` fails, `read` sees an error instead of an end, so that a half stream is never taken for a whole
    one; when `read` fails, `write` sees a broken pipe. The first cause is raised.
    """
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []
    tap = _Tap(read_end, failures)

    def feed() -> None:
        file = os.fdopen(write_end, "wb", buffering=CHUNK_BYTES)
        try:
            write(file)
            file.flush()
        except BaseException as error:
            failures.append(error)  # before the end of the stream can be seen
        with contextlib.suppress(OSError):  # what a broken pipe left in the buffer
            file.close()

    feeder = threading.Thread(target=feed, name="copy-out")
    feeder.start()
    try:
        read(tap)  # type: ignore[arg-type]
    except BaseException:
        os.close(read_end)
        read_end = -1
        feeder.join()
        if tap.has_failed:
            raise failures[0] from None
        raise
    finally:
        if read_end >= 0:
            os.close(read_end)
        feeder.join()
    return tap.size


class _Tap:
    """The reading end of a pipe: counts bytes, and fails where the writer failed."""

    def __init__(self, descriptor: int, failures: list[BaseException]) -> None:
        self._descriptor = descriptor
        self._failures = failures
        self.size = 0
        self.has_failed = False

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        chunk = os.read(self._descriptor, size if size > 0 else CHUNK_BYTES)
        if not chunk and self._failures:
            self.has_failed = True
            raise BrokenPipeError("the reading side of the copy failed")
        self.size += len(chunk)
        return chunk


def _check_columns(table: Table, found: dict[str, str]) -> None:
    """Refuse a raw table that lacks a column or has one of another type; extra columns stay as they are."""
    expected = {column.name: column.raw_type for column in table.columns}
    faults = [
        f'expected column "{name}" of type {kind}, found {found.get(name, "none")}'
        for name, kind in expected.items()
        if found.get(name) != kind
    ]
    missing = [name for name in statements.META_COLUMNS if name not in found]
    faults += [f'expected column "{name}", found none' for name in missing]
    if faults:
        raise TableError(
            f"raw.{table.name} does not fit {table.label}: {'; '.join(faults)}; "
            f"load it anew: drop table raw.{table.name} cascade, then run again"
        )
