"""Composes the statements that compare a source table with its raw table by buckets of keys. No I/O.

A row's bucket depends only on its key and is computed the same way on both sides, so nothing depends on an order. Rows
are compared by a hash of their content. Both sides compute the same hash, because the sessions pin their settings. A
function that takes a `Side` works for both. docs/decisions/0008 gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from etl.keys.comparisons import as_text, is_among, same_key, source_column, typed
from etl.model import Column, Table
from etl.policy.column_types import MODIFIER
from etl.postgres.sql import comma
from etl.source.statements import cast, is_since, source_rows
from etl.target.statements import raw_table

# A temporary table, one per session: keys and hashes of the source's rows in the buckets that differ.
SOURCE_KEYS = sql.Identifier("pg_temp", "etl_source_keys")
# A temporary table, one per session: the differences found, numbered.
FOUND = sql.Identifier("pg_temp", "etl_found")
# There are 2 to this power buckets. More would narrow a change down to fewer rows; these still fit in the default
# work_mem, 4 MB.
BUCKET_BITS = 15
# If the key is one integer, at least 2 to this power consecutive keys share a bucket, because rows that change together
# often have consecutive keys.
MIN_BLOCK_BITS = 6
INTEGERS = ("smallint", "integer", "bigint")
# Send functions by type; each returns a value's bytes, its image. Only types whose image is faster to compute than the
# text, is as exact, and has not changed since PostgreSQL 11. Not float: NaN has several images, and one text.
IMAGES: Mapping[str, str] = {
    "bigint": "int8send",
    "boolean": "boolsend",
    "bytea": "byteasend",
    "character varying": "varcharsend",
    "date": "date_send",
    "integer": "int4send",
    "jsonb": "jsonb_send",
    "numeric": "numeric_send",
    "smallint": "int2send",
    "text": "textsend",
    "timestamp with time zone": "timestamptz_send",
    "timestamp without time zone": "timestamp_send",
    "uuid": "uuid_send",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The columns of a table to compare, and what decides the bucket of a row."""

    table: Table
    columns: tuple[Column, ...]
    watermark: str | None  # the next run reads the source from here on, so differences there are pending
    since_xid: str | None  # of these rows, the next run reads the versions that this transaction or a later one wrote
    is_pending_apart: bool
    is_same_encoding: bool  # of both servers: if not, text is converted before it is hashed
    left_out: tuple[tuple[str, ...], ...] = ()  # keys of the source that the target cannot store
    rejected: tuple[tuple[str, ...], ...] = ()  # keys, others than these, of rows that the target rejects

    @property
    def block_bits(self) -> int:
        """How many low bits of an integer key to ignore, so that keys without gaps have one block for each bucket."""
        return max(MIN_BLOCK_BITS, self.table.estimated_rows.bit_length() - BUCKET_BITS)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison: the source, or `raw` without tombstones."""

    table: Table
    is_source: bool

    @property
    def rows(self) -> sql.Composable:
        """The relation, with the alias s."""
        return source_rows(self.table) if self.is_source else sql.SQL("{} as s").format(raw_table(self.table.name))

    @property
    def condition(self) -> sql.Composable:
        return sql.SQL("true" if self.is_source else "s._etl_deleted_at is null")

    def value(self, column: Column) -> sql.Composable:
        """A column's value, in the type that the column has in `raw`."""
        if self.is_source and column.is_cast:
            return sql.SQL("({})").format(cast(column))
        return source_column(column.name)

    def text(self, column: Column) -> sql.Composable:
        """A value of a column that is never NULL, as text."""
        value = source_column(column.name) if column.has_own_cast else self.value(column)
        return as_text(column, value, is_source=self.is_source)

    def text_hash(self, columns: Sequence[Column], *, is_same_encoding: bool) -> sql.Composable:
        """A hash of the text of these columns; all versions of PostgreSQL since 11 compute the same one."""
        return _text_hash(self._row_text(columns, is_same_encoding=is_same_encoding), sql.SQL("0"))

    def hash(self, columns: Sequence[Column], *, is_same_encoding: bool) -> sql.Composable:
        """A hash of these columns: of their images where these are as exact as the text, and otherwise of their text.

        The hash of an array adds up the hashes of its elements, so a sum over rows would not notice that two rows
        exchanged values. The array's hash is therefore hashed again, as the seed of the text's hash. PostgreSQL's own
        hash of a bigint or timestamp cannot replace that of an image: its 32 bits are equal for 1 and 4,294,967,296.
        """
        has_image = {column.name: is_same_encoding and _image(column) is not None for column in columns}
        images = comma(
            sql.SQL("pg_catalog.{}({})").format(sql.Identifier(str(_image(column))), self.value(column))
            for column in columns
            if has_image[column.name]
        )
        rest = [column for column in columns if not has_image[column.name]]
        text = self._row_text(rest, is_same_encoding=is_same_encoding) if rest else sql.Literal("")
        if len(rest) == len(columns):
            return _text_hash(text, sql.SQL("0"))
        return _text_hash(text, sql.SQL("pg_catalog.hash_array_extended(array[{}], 0)").format(images))

    def bucket(self, comparison: Comparison) -> sql.Composable:
        """The number of the bucket that a row's key belongs to, from 0."""
        key = [comparison.table.column(name) for name in comparison.table.key]
        if len(key) == 1 and key[0].raw_type in INTEGERS:
            # Consecutive blocks of keys get different buckets, until all buckets are used. The hash of the bits above
            # spreads keys evenly over all buckets, however large their gaps are.
            shifted = sql.SQL("({}::bigint >> {})")
            block = shifted.format(self.value(key[0]), sql.Literal(comparison.block_bits))
            above = shifted.format(self.value(key[0]), sql.Literal(comparison.block_bits + BUCKET_BITS))
            number: sql.Composable = sql.SQL("{} # pg_catalog.hashint8extended({}, 0)").format(block, above)
        else:
            number = self.hash(key, is_same_encoding=comparison.is_same_encoding)
        return sql.SQL("(({}) & {}::bigint)").format(number, sql.Literal(2**BUCKET_BITS - 1))

    def is_in(self, comparison: Comparison, buckets: Sequence[int]) -> sql.Composable:
        """A condition that a row's key is in one of these buckets; a join, because a list may be searched linearly."""
        numbers = sql.Literal(f"{{{','.join(map(str, buckets))}}}")
        return sql.SQL("{} in (select pg_catalog.unnest({}::bigint[]))").format(self.bucket(comparison), numbers)

    def _row_text(self, columns: Sequence[Column], *, is_same_encoding: bool) -> sql.Composable:
        text = sql.SQL("row({})::text").format(comma(map(self.value, columns)))
        if is_same_encoding:
            return text
        return sql.SQL("pg_catalog.encode(pg_catalog.convert_to({}, 'UTF8'), 'base64')").format(text)


def _text_hash(text: sql.Composable, seed: sql.Composable) -> sql.Composable:
    return sql.SQL("pg_catalog.hashtextextended({}, {})").format(text, seed)


def _image(column: Column) -> str | None:
    """Return a column's send function; None if there is none, or if the bytes may differ between the sides."""
    return IMAGES.get(MODIFIER.sub("", column.raw_type)) if column.is_binary else None


def _hash(side: Side, comparison: Comparison) -> sql.Composable:
    return side.hash(comparison.columns, is_same_encoding=comparison.is_same_encoding)


def checksums(side: Side, comparison: Comparison) -> sql.Composable:
    """Select for each bucket that has rows its number, its number of rows, and a checksum.

    `offset 0` makes the planner treat the inner query separately. Otherwise it expects as many buckets as there are
    keys, and plans for them with memory, files, or a sort.
    """
    return sql.SQL(
        "select _etl_bucket, count(*), sum(_etl_hash)::text"
        " from (select {bucket} as _etl_bucket, {hash} as _etl_hash from {rows} where {condition} offset 0) as s"
        " group by 1"
    ).format(bucket=side.bucket(comparison), hash=_hash(side, comparison), rows=side.rows, condition=side.condition)


def create_source_keys(table: Table) -> sql.Composable:
    return sql.SQL(
        "drop table if exists {keys};"
        " create temporary table etl_source_keys as"
        " select {names}, null::bigint as _etl_hash, null::boolean as _etl_is_pending from {raw} with no data"
    ).format(keys=SOURCE_KEYS, names=comma(map(sql.Identifier, table.key)), raw=raw_table(table.name))


def copy_out_source_keys(comparison: Comparison, buckets: Sequence[int]) -> sql.Composable:
    """Copy the key and hash of each source row in these buckets, and whether the row is pending.

    A row is pending when it is at or above the watermark, or has none, and is newer than the last read: the next run
    reads it anyway.
    """
    table, side = comparison.table, Side(table=comparison.table, is_source=True)
    return sql.SQL("copy (select {keys}, {hash}, {is_pending} from {rows} where {is_in}{is_held}) to stdout").format(
        keys=comma(side.value(table.column(name)) for name in table.key),
        hash=_hash(side, comparison),
        is_pending=_is_pending(comparison),
        is_held=_is_held(comparison),
        rows=side.rows,
        is_in=side.is_in(comparison, buckets),
    )


def copy_in_source_keys() -> sql.Composable:
    return sql.SQL("copy {} from stdin").format(SOURCE_KEYS)


def analyze_source_keys() -> sql.Composable:
    return sql.SQL("analyze {}").format(SOURCE_KEYS)


def find_differences(comparison: Comparison, buckets: Sequence[int]) -> sql.Composable:
    """Store what differs in these buckets, numbered: key, kind, and whether it is pending.

    The kinds are missing, extra, changed and rejected. A row that only `raw` has is extra, and never pending: reading
    the source's changes does not remove it. A rejected row is never pending either: reading it again does not help.
    """
    table, side = comparison.table, Side(table=comparison.table, is_source=False)
    return sql.SQL(
        "drop table if exists {found};"
        " create temporary table etl_found as"
        " select row_number() over () as _etl_n, {keys},"
        " case when k._etl_hash is null then 'extra' when {is_rejected} then 'rejected'"
        " when s._etl_hash is null then 'missing' else 'changed' end as _etl_kind,"
        " coalesce(k._etl_is_pending and not {is_rejected}, false) as _etl_is_pending"
        " from {source_keys} as k full join ("
        " select {values}, {hash} as _etl_hash from {rows} where {condition} and {is_in}"
        ") as s on {same_key}"
        " where k._etl_hash is distinct from s._etl_hash"
    ).format(
        found=FOUND,
        keys=comma(
            sql.SQL("coalesce({}, {}) as {}").format(
                sql.Identifier("k", name), sql.Identifier("s", name), sql.Identifier(name)
            )
            for name in table.key
        ),
        source_keys=SOURCE_KEYS,
        is_rejected=_is_rejected(comparison),
        values=comma(source_column(name) for name in table.key),
        hash=_hash(side, comparison),
        rows=side.rows,
        condition=side.condition,
        is_in=side.is_in(comparison, buckets),
        same_key=same_key(table, "k", "s"),
    )


def count_differences() -> sql.Composable:
    """Select for each kind, pending or not, the number of differences."""
    return sql.SQL("select _etl_kind, _etl_is_pending, count(*) from {} group by 1, 2").format(FOUND)


def list_differences(table: Table, kinds: Sequence[str], after: int, limit: int) -> sql.Composable:
    """Select number, kind, and key as text, of the next `limit` differences that are not pending, in order."""
    return sql.SQL(
        "select _etl_n, _etl_kind, {} from {} as s"
        " where _etl_kind in ({}) and not _etl_is_pending and _etl_n > {} order by _etl_n limit {}"
    ).format(
        comma(as_text(table.column(name), source_column(name), is_source=False) for name in table.key),
        FOUND,
        comma(map(sql.Literal, kinds)),
        sql.Literal(after),
        sql.Literal(limit),
    )


def extra_keys() -> sql.Composable:
    """Return the rows that only `raw` has, as a relation in the session that found them."""
    return sql.SQL("(select * from {} where _etl_kind = 'extra')").format(FOUND)


def column_hashes(side: Side, keys: Sequence[tuple[str, ...]], *, is_same_encoding: bool) -> sql.Composable:
    """Select each of these keys, as text, and a hash of the text of each column of its row."""
    table = side.table
    return sql.SQL("select {keys}, array[{hashes}] from {rows} where {is_among} and {condition}").format(
        keys=comma(side.text(table.column(name)) for name in table.key),
        hashes=comma(side.text_hash([column], is_same_encoding=is_same_encoding) for column in table.columns),
        rows=side.rows,
        is_among=is_among(table, keys, is_source=side.is_source),
        condition=side.condition,
    )


def _is_held(comparison: Comparison) -> sql.Composable:
    table, left_out = comparison.table, comparison.left_out
    if not left_out:
        return sql.SQL("")
    return sql.SQL(" and not {}").format(is_among(table, left_out))


def _is_rejected(comparison: Comparison) -> sql.Composable:
    table, rejected = comparison.table, comparison.rejected
    if not rejected:
        return sql.SQL("false")
    return is_among(table, rejected, is_source=False, alias="k")


def _is_pending(comparison: Comparison) -> sql.Composable:
    table, watermark = comparison.table, comparison.watermark
    if not comparison.is_pending_apart or table.watermark is None:
        return sql.SQL("false")
    column = source_column(table.watermark)
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if watermark is not None:
        value = typed(table, table.watermark, watermark)
        conditions.append(sql.SQL("({0} is null or {0} >= {1})").format(column, value))
    if comparison.since_xid is not None:
        conditions.append(is_since(comparison.since_xid))
    return sql.SQL(" and ").join(conditions)
