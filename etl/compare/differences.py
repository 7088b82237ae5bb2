"""Finds what differs between a source table and its raw table: by buckets, then by key in the buckets that differ.

Buckets with equal checksums transfer no keys. Both sides compute their checksums at the same time. The differences stay
in a temporary table of the target's session, to be listed or repaired. Begin at `find_differences`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import encodings

from etl.compare import buckets
from etl.compare.buckets import Comparison, Side
from etl.errors import TableError
from etl.ledger import rejects
from etl.model import Column, Table
from etl.postgres.copy_pipe import copy_in, stream
from etl.postgres.error_translation import errors_of
from etl.source.reader import Reader
from etl.source.statements import shared_key

DifferenceKind = Literal["missing", "extra", "changed", "rejected"]
Keys = tuple[tuple[str, ...], ...]
LIST_ROWS = 1000  # keys read from the target at a time


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How many rows differ; those that the next run reads anyway are pending."""

    source_rows: int
    raw_rows: int
    missing: int = 0  # only on the source
    extra: int = 0  # only in `raw`
    changed: int = 0
    rejected: int = 0  # missing or changed, because the target rejects them; in no other count
    pending: int = 0  # missing or changed, but not included in these counts
    not_held: int = 0  # rejected, because the target's encoding lacks characters of the key; in no other count

    @property
    def are_none(self) -> bool:
        return not self.extra and not self.to_load

    @property
    def to_load(self) -> int:
        """How many source rows `raw` lacks, or has in another version; rejected ones are tried again."""
        return self.missing + self.changed + self.rejected


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row that differs."""

    kind: DifferenceKind
    key: tuple[str, ...]  # as text


def find_differences(
    reader: Reader,
    cursor: Cursor,
    table: Table,
    columns: Sequence[Column],
    watermark: str | None,
    *,
    since_xid: str | None = None,
    is_pending_apart: bool = True,
) -> Differences:
    """Compare these columns of all rows; `cursor` is in a transaction on the target.

    Source rows at or above the watermark, or without one, are pending, unless `is_pending_apart` is false; with
    `since_xid`, a 32-bit transaction id, only the versions that this transaction or a later one wrote. Rows that the
    target rejected when a run last tried them are rejected, as long as they differ. Raises TableError where rows of
    descendants share a key, of which raw can hold one.
    """
    if table.descendants == "within":
        _refuse_shared_key(reader, table)
    with errors_of("target", table.label):
        rejected, not_held = _rejected_keys(reader, cursor, table)
        comparison = Comparison(
            table=table,
            columns=tuple(table.column(column.name) for column in columns),
            watermark=watermark,
            since_xid=since_xid,
            is_pending_apart=is_pending_apart and table.watermark is not None,
            is_same_encoding=_is_same_encoding(reader, cursor),
            left_out=not_held,
            rejected=rejected,
        )
        with ThreadPoolExecutor(1, thread_name_prefix="checksums") as pool:
            in_source = pool.submit(read_source_checksums, reader, comparison)
            cursor.execute(buckets.checksums(Side(table=table, is_source=False), comparison))
            raw = {number: (rows, checksum) for number, rows, checksum in cursor}
            source = in_source.result()
        different = sorted(number for number in source.keys() | raw.keys() if source.get(number) != raw.get(number))
        if different:
            _compare_keys(reader, cursor, comparison, different)
        counts = _count(cursor) if different else {}
    return Differences(
        source_rows=sum(rows for rows, _ in source.values()),
        raw_rows=sum(rows for rows, _ in raw.values()),
        missing=counts.get(("missing", False), 0),
        not_held=len(comparison.left_out),
        extra=counts.get(("extra", False), 0),
        changed=counts.get(("changed", False), 0),
        rejected=counts.get(("rejected", False), 0),
        pending=counts.get(("missing", True), 0) + counts.get(("changed", True), 0),
    )


def _refuse_shared_key(reader: Reader, table: Table) -> None:
    for key in reader.query(shared_key(table)):
        described = ", ".join(f"{name} = {value}" for name, value in zip(table.key, key, strict=True))
        raise TableError(
            f"{table.label} and tables that inherit from it have several rows with the key {described}, and raw can "
            "hold one: give each row a key of its own on the source, or each of these tables a primary key"
        )


def list_differences(
    cursor: Cursor, table: Table, kinds: Sequence[DifferenceKind], *, limit: int = LIST_ROWS
) -> Iterator[list[Difference]]:
    """Yield the differences found that are not pending, `limit` at a time."""
    after = 0
    while True:
        with errors_of("target", table.label):
            cursor.execute(buckets.list_differences(table, kinds, after, limit))
            rows = cursor.fetchall()
        if not rows:
            return
        after = rows[-1][0]
        yield [Difference(kind=kind, key=tuple(key)) for _, kind, *key in rows]


def find_changed_columns(
    reader: Reader, cursor: Cursor, table: Table, keys: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the columns whose text differs, by key; keys that one side lacks are left out."""
    is_same_encoding = _is_same_encoding(reader, cursor)
    side = Side(table=table, is_source=True)
    in_source = _by_key(reader.query(buckets.column_hashes(side, keys, is_same_encoding=is_same_encoding)))
    side = Side(table=table, is_source=False)
    with errors_of("target", table.label):
        cursor.execute(buckets.column_hashes(side, keys, is_same_encoding=is_same_encoding))
        in_raw = _by_key(cursor.fetchall())
    return {
        key: tuple(
            column.name
            for column, one, other in zip(table.columns, in_source[key], in_raw[key], strict=True)
            if one != other
        )
        for key in keys
        if key in in_source and key in in_raw
    }


def read_source_checksums(reader: Reader, comparison: Comparison) -> dict[int, tuple[int, str]]:
    """Return the number of rows and a checksum of each bucket that has rows on the source."""
    rows = reader.query(buckets.checksums(Side(table=comparison.table, is_source=True), comparison))
    return {number: (count, checksum) for number, count, checksum in rows}


def _by_key(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[str, ...], list[int]]:
    """Return the hashes of each row's columns, by key."""
    return {tuple(key): hashes for *key, hashes in rows}


def _rejected_keys(reader: Reader, cursor: Cursor, table: Table) -> tuple[Keys, Keys]:
    """Return the keys of rejected rows; apart, those that contain characters missing from the target's encoding."""
    refused = rejects.read_rejected_keys(cursor, table.name)
    if _is_same_encoding(reader, cursor):
        return refused, ()
    codec = encodings.get(cursor.connection.info.parameter_status("server_encoding") or "", "ascii")
    not_held = tuple(key for key in refused if any(part.encode(codec, "ignore").decode(codec) != part for part in key))
    return tuple(key for key in refused if key not in not_held), not_held


def _is_same_encoding(reader: Reader, cursor: Cursor) -> bool:
    return reader.encoding == cursor.connection.info.parameter_status("server_encoding")


def _compare_keys(reader: Reader, cursor: Cursor, comparison: Comparison, different: Sequence[int]) -> None:
    cursor.execute(buckets.create_source_keys(comparison.table))
    with stream(partial(reader.copy, buckets.copy_out_source_keys(comparison, different))) as keys:
        copy_in(cursor, buckets.copy_in_source_keys(), keys)
    cursor.execute(buckets.analyze_source_keys())
    cursor.execute(buckets.find_differences(comparison, different))


def _count(cursor: Cursor) -> dict[tuple[str, bool], int]:
    cursor.execute(buckets.count_differences())
    return {(kind, is_pending): rows for kind, is_pending, rows in cursor}
