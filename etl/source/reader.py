"""Reads one table of the source at one snapshot. Nothing here writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

from etl.errors import SourceChangedError, TableError
from etl.model import Snapshot, Table
from etl.postgres import copy_pipe
from etl.postgres.error_translation import errors_of
from etl.postgres.throttle import Throttle
from etl.source import statements, storage
from etl.source.statements import BlockRange, Window


class Reader:
    """A session that reads one table at one snapshot."""

    def __init__(
        self,
        connection: Connection,
        table: Table,
        snapshot: Snapshot,
        *,
        throttle: Throttle | None,
        on_close: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._is_closed = False
        self._throttle = throttle
        self._table = table
        self.snapshot = snapshot
        self._on_close = on_close

    def close(self) -> None:
        """Release the snapshot and the lock on the table."""
        self._is_closed = True
        with suppress(psycopg2.Error), self._connection.cursor() as cursor:  # a lost session holds nothing
            cursor.execute("rollback")
        self._on_close()

    def copy_out(self, table: Table, rows: Window | BlockRange, into: IO[bytes]) -> None:
        """Write rows to a file in COPY format; `table` decides the types and the format, as `raw` needs them."""
        self.copy(statements.copy_out(table, rows), into)

    def copy_out_keys(self, rows: Window | BlockRange, into: IO[bytes]) -> None:
        """Write the keys of rows to a file in COPY text format."""
        self.copy(statements.copy_out_keys(self._table, rows), into)

    def text_of(self, window: Window) -> bytes:
        """Return the rows of a small window in COPY text format, in UTF-8."""
        buffer = io.BytesIO()
        self.copy(statements.copy_out_text(self._table, window), buffer)
        return buffer.getvalue()

    def window_end(self, window: Window) -> tuple[str, ...]:
        """Return the sort values, as text, of the last row of a full window.

        Raises TableError when the next window, which begins after them, would not begin after that row: it could leave
        rows out, or read the same rows for ever.
        """
        if statements.has_built_in_order(self._table, window):
            end = self._row(statements.window_end(self._table, window))
            is_right = end != window.after
        else:
            *values, relation, ctid = self._row(statements.window_end_and_place(self._table, window))
            end = tuple(values)
            (is_right,) = self._row(statements.is_end_of(self._table, window, end, (relation, ctid)))
        if not is_right:
            raise TableError(
                f"{self._table.label}: a batch ends with the row ({', '.join(end)}), and these values, read back as "
                "text, are not those of that row, or are not greater than those of the row before the batch: correct "
                "the input and output functions or the operator class of the key's types on the source, or give the "
                "table another key"
            )
        return end

    def key_of(self, window: Window) -> tuple[str, ...]:
        """Return the key, as text, of the last row of a full window."""
        return self._row(statements.last_key(self._table, window))

    def keys_among(self, keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the keys, as text, of the rows whose key equals one of these, as the source compares them."""
        return self.query(statements.keys_among(self._table, keys))

    def lesser_watermark(self, one: str, other: str) -> str:
        """Return the lesser of two values of the watermark column, as text."""
        return str(self._row(statements.lesser_watermark(self._table, one, other))[0])

    def last_sequence_value(self) -> int | None:
        """Return the last number of the watermark's sequence; None without a sequence, or without the privilege."""
        sequence = self._table.watermark_sequence
        return None if sequence is None else self._row(statements.last_of_sequence(sequence))[0]

    def has_values(self, names: Sequence[str]) -> bool:
        """Return whether any row has a value in any of these columns."""
        return bool(self._row(statements.has_values(self._table, names))[0])

    def has_null_watermark(self) -> bool:
        """Return whether the watermark column is NULL in any row."""
        return bool(self._row(statements.has_null_watermark(self._table))[0])

    def block_counts(self) -> list[int]:
        """Return the number of blocks of each partition, or of the table itself."""
        with self._session() as cursor:
            return storage.read_block_counts(cursor, self._table.oid)

    def query(self, statement: Composable) -> list[tuple[Any, ...]]:
        """Return the rows of a statement at the snapshot."""
        with self._session() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    @property
    def encoding(self) -> str | None:
        """The encoding of the source's database, in which text is hashed."""
        return self._connection.info.parameter_status("server_encoding")

    def copy(self, statement: Composable, into: IO[bytes]) -> None:
        """Write the output of a COPY statement to a file, no faster than the throttle allows."""
        with self._session() as cursor:
            copy_pipe.copy_out(cursor, statement, into, self._throttle)

    @contextmanager
    def _session(self) -> Iterator[Cursor]:
        """Yield a cursor at the snapshot; raises SourceChangedError when the reader is closed."""
        if self._is_closed:
            raise SourceChangedError(f"{self._table.label}: its snapshot was released too early; read again")
        with errors_of("source", self._table.label), self._connection.cursor() as cursor:
            yield cursor

    def _row(self, statement: str | Composable) -> tuple[Any, ...]:
        with self._session() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
        assert row is not None
        return tuple(row)
