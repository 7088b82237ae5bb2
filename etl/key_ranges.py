"""Composes the statements that compare a source table with its raw table by ranges of keys. No I/O.

Both sides divide their rows by the same bounds in the same order: that of the key's types, text under collation "C",
because the servers' own orders may differ. Rows are compared by a hash of their text, which the pinned settings of
the sessions make the same on both sides. A function that takes a `Side` serves either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import sql

from etl.model import Column, Table
from etl.raw_statements import raw_table
from etl.statements import (
    SECONDS_PER_DAY,
    cast,
    comma,
    key_values,
    same_key,
    source_column,
    source_table,
    typed,
)

# Temporary, one a session: rows of the source in the ranges that differ, by key.
SOURCE_KEYS = sql.Identifier("pg_temp", "etl_source_keys")
# Temporary, one a session: what was found to differ, numbered.
FOUND = sql.Identifier("pg_temp", "etl_found")
# Types, or the beginnings of their names, that a collation orders.
COLLATABLE = ("text", "character", "name", "public.citext")
# More ranges find a change more narrowly, and cost more per row, for which the bounds are searched.
MAX_RANGES = 500
MIN_RANGE_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What of a table is compared, and by which ranges."""

    table: Table
    columns: tuple[Column, ...]
    watermark: str | None  # the next run reads rows of the source from here on, so differences there are pending
    is_pending_apart: bool
    bounds: tuple[tuple[str, ...], ...]  # keys as text, ascending: where one range ends and the next begins
    is_same_encoding: bool  # of both servers: else text is converted before it is hashed
    left_out: tuple[tuple[str, ...], ...] = ()  # keys of the source that the target cannot hold


@dataclass(frozen=True, kw_only=True)
class Side:
    """How one side of a comparison names its rows: the source's, or the live ones of `raw`."""

    table: Table
    is_source: bool

    @property
    def rows(self) -> sql.Composable:
        """The relation, as alias s."""
        relation = source_table(self.table) if self.is_source else raw_table(self.table.name)
        return sql.SQL("{} as s").format(relation)

    @property
    def condition(self) -> sql.Composable:
        return sql.SQL("true" if self.is_source else "s._etl_deleted_at is null")

    def value(self, column: Column) -> sql.Composable:
        """A column's value, in the type that `raw` has."""
        if self.is_source and column.is_cast:
            return sql.SQL("({})").format(cast(column))
        return source_column(column.name)

    def hash(self, columns: Sequence[Column], *, is_same_encoding: bool) -> sql.Composable:
        """A hash of a row's text; that function is the same on every server since PostgreSQL 11."""
        text = sql.SQL("row({})::text").format(comma(map(self.value, columns)))
        if not is_same_encoding:
            text = sql.SQL("pg_catalog.encode(pg_catalog.convert_to({}, 'UTF8'), 'base64')").format(text)
        return sql.SQL("pg_catalog.hashtextextended({}, 0)").format(text)

    def range(self, comparison: Comparison) -> sql.Composable:
        """The number of the range that a row's key lies in, from 0."""
        if not comparison.bounds:
            return sql.SQL("0")
        key = [self.table.column(name) for name in self.table.key]
        is_single = len(key) == 1 and not key[0].raw_type.endswith("[]")  # an array of arrays would be one array
        combine = comma if is_single else _row
        operand = combine([_ordered(column, self.value(column)) for column in key])
        thresholds = comma(
            combine(
                [
                    _ordered(column, sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(column.raw_type)))
                    for column, value in zip(key, values, strict=True)
                ]
            )
            for values in comparison.bounds
        )
        return sql.SQL("pg_catalog.width_bucket({}, array[{}])").format(operand, thresholds)


def _hash(side: Side, comparison: Comparison) -> sql.Composable:
    return side.hash(comparison.columns, is_same_encoding=comparison.is_same_encoding)


def raw_bounds(table: Table) -> sql.Composable:
    """Answer the keys, as text, that divide the live rows of `raw` into ranges of equal size, in order."""
    side = Side(table=table, is_source=False)
    key = [table.column(name) for name in table.key]
    return sql.SQL(
        "select {texts} from ("
        " select {values}, row_number() over (order by {order}) as _etl_n, count(*) over () as _etl_count"
        " from {rows} where {condition}"
        ") as s"
        " where s._etl_n % greatest({least}, ceil(s._etl_count / {ranges}::numeric)::bigint) = 0 order by s._etl_n"
    ).format(
        texts=comma(sql.SQL("{}::text").format(source_column(name)) for name in table.key),
        values=comma(map(side.value, key)),
        order=comma(_ordered(column, side.value(column)) for column in key),
        rows=side.rows,
        condition=side.condition,
        least=sql.Literal(MIN_RANGE_ROWS),
        ranges=sql.Literal(MAX_RANGES),
    )


def checksums(side: Side, comparison: Comparison) -> sql.Composable:
    """Answer for each range that has rows: its number, how many, and a checksum."""
    return sql.SQL(
        "select {range}, count(*), sum({hash}::numeric)::text from {rows} where {condition} group by 1"
    ).format(range=side.range(comparison), hash=_hash(side, comparison), rows=side.rows, condition=side.condition)


def create_source_keys(table: Table) -> sql.Composable:
    return sql.SQL(
        "drop table if exists {keys};"
        " create temporary table etl_source_keys as"
        " select {names}, null::bigint as _etl_hash, null::boolean as _etl_is_pending from {raw} with no data"
    ).format(keys=SOURCE_KEYS, names=comma(map(sql.Identifier, table.key)), raw=raw_table(table.name))


def copy_out_source_keys(comparison: Comparison, ranges: Sequence[int]) -> sql.Composable:
    """Read of the source's rows in some ranges the key, the hash, and whether the row is pending.

    Pending is a row at or above the watermark, or without one: the next run reads it again.
    """
    table, side = comparison.table, Side(table=comparison.table, is_source=True)
    return sql.SQL(
        "copy (select {keys}, {hash}, {is_pending} from {rows} where {range} in ({ranges}){is_held}) to stdout"
    ).format(
        keys=comma(side.value(table.column(name)) for name in table.key),
        hash=_hash(side, comparison),
        is_pending=_is_pending(comparison),
        is_held=_is_held(comparison),
        rows=side.rows,
        range=side.range(comparison),
        ranges=comma(map(sql.Literal, ranges)),
    )


def copy_in_source_keys() -> sql.Composable:
    return sql.SQL("copy {} from stdin").format(SOURCE_KEYS)


def analyze_source_keys() -> sql.Composable:
    return sql.SQL("analyze {}").format(SOURCE_KEYS)


def find_differences(comparison: Comparison, ranges: Sequence[int]) -> sql.Composable:
    """Number what differs in some ranges: the key, the kind (missing, extra or changed), and whether it is pending.

    A row that only `raw` has is extra, and never pending: no later read brings it.
    """
    table, side = comparison.table, Side(table=comparison.table, is_source=False)
    return sql.SQL(
        "drop table if exists {found};"
        " create temporary table etl_found as"
        " select row_number() over () as _etl_n, {keys},"
        " case when k._etl_hash is null then 'extra' when s._etl_hash is null then 'missing' else 'changed' end"
        " as _etl_kind, coalesce(k._etl_is_pending, false) as _etl_is_pending"
        " from {source_keys} as k full join ("
        " select {values}, {hash} as _etl_hash from {rows} where {condition} and {range} in ({ranges})"
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
        values=comma(source_column(name) for name in table.key),
        hash=_hash(side, comparison),
        rows=side.rows,
        condition=side.condition,
        range=side.range(comparison),
        ranges=comma(map(sql.Literal, ranges)),
        same_key=same_key(table, "k", "s"),
    )


def count_differences() -> sql.Composable:
    """Answer each kind, whether it is pending, and how many there are."""
    return sql.SQL("select _etl_kind, _etl_is_pending, count(*) from {} group by 1, 2").format(FOUND)


def list_differences(table: Table, kinds: Sequence[str], after: int, limit: int) -> sql.Composable:
    """Answer number, kind, and the key as text, of some differences that are not pending, in order."""
    return sql.SQL(
        "select _etl_n, _etl_kind, {} from {} as s"
        " where _etl_kind in ({}) and not _etl_is_pending and _etl_n > {} order by _etl_n limit {}"
    ).format(
        comma(sql.SQL("{}::text").format(source_column(name)) for name in table.key),
        FOUND,
        comma(map(sql.Literal, kinds)),
        sql.Literal(after),
        sql.Literal(limit),
    )


def column_hashes(side: Side, keys: Sequence[tuple[str, ...]], *, is_same_encoding: bool) -> sql.Composable:
    """Answer for each of some keys, as text, the hashes of the row's columns one by one."""
    table = side.table
    columns = [table.column(name) for name in table.key]
    return sql.SQL("select {keys}, array[{hashes}] from {rows} where ({names}) in ({values}) and {condition}").format(
        keys=comma(sql.SQL("{}::text").format(side.value(column)) for column in columns),
        hashes=comma(side.hash([column], is_same_encoding=is_same_encoding) for column in table.columns),
        rows=side.rows,
        names=comma(map(source_column, table.key)),
        values=key_values(table, keys, is_source=side.is_source),
        condition=side.condition,
    )


def bury_extra(table: Table, run_id: int) -> sql.Composable:
    """Make tombstones of the rows found extra."""
    return sql.SQL(
        "update {raw} as r set _etl_deleted_at = transaction_timestamp(), _etl_run_id = {run_id},"
        " _etl_synced_at = transaction_timestamp()"
        " from {found} as f where f._etl_kind = 'extra' and {same_key}"
    ).format(raw=raw_table(table.name), run_id=sql.Literal(run_id), found=FOUND, same_key=same_key(table, "f", "r"))


def purge_tombstones(table: Table, days: float, run_id: int) -> sql.Composable:
    """Delete tombstones of that age which a run up to this one made."""
    return sql.SQL(
        "delete from {} where _etl_deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => {})"
        " and _etl_run_id <= {}"
    ).format(raw_table(table.name), sql.Literal(days * SECONDS_PER_DAY), sql.Literal(run_id))


def _is_held(comparison: Comparison) -> sql.Composable:
    table, left_out = comparison.table, comparison.left_out
    if not left_out:
        return sql.SQL("")
    return sql.SQL(" and ({}) not in ({})").format(comma(map(source_column, table.key)), key_values(table, left_out))


def _is_pending(comparison: Comparison) -> sql.Composable:
    table, watermark = comparison.table, comparison.watermark
    if not comparison.is_pending_apart or table.watermark is None:
        return sql.SQL("false")
    if watermark is None:
        return sql.SQL("true")
    column = source_column(table.watermark)
    return sql.SQL("({0} is null or {0} >= {1})").format(column, typed(table, table.watermark, watermark))


def _ordered(column: Column, value: sql.Composable) -> sql.Composable:
    return sql.SQL('{} collate "C"').format(value) if column.raw_type.startswith(COLLATABLE) else value


def _row(values: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("row({})").format(comma(values))
