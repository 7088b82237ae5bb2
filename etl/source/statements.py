"""Composes the statements that read a source table, and the fragments that they share. No I/O.

Identifiers are composed with psycopg2.sql and values are literals or parameters; nothing is formatted into SQL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import sql

from etl.keys.comparisons import are_equal, as_text, follows, is_among, ordered, source_column, typed
from etl.model import MASK_PADS, Column, Mask, Table, WatermarkKind
from etl.postgres.sql import SECONDS_PER_DAY, comma, copy_format

TEXTS = ("text", "text[]")


@dataclass(frozen=True, kw_only=True)
class Window:
    """The rows of a batch: those that follow `after` in the order of (watermark, key), at most `limit`.

    `read_from` is the watermark at which reading starts, inclusive, less the table's lookback; None reads rows of any
    watermark, in the order of the key. `is_null_watermark` reads only the rows whose watermark column is NULL, `keys`
    only the rows with these keys, `within` only these row versions. Values are text, as the source writes them.
    """

    read_from: str | None = None
    is_null_watermark: bool = False
    keys: tuple[tuple[str, ...], ...] | None = None
    within: BlockRange | None = None
    after: tuple[str, ...] | None = None
    limit: int


@dataclass(frozen=True, kw_only=True)
class BlockRange:
    """The rows in the blocks from `start` to `end`, exclusive, of a table or of each of its partitions.

    With `since_xid`, a 32-bit transaction id, only row versions written by that transaction or a later one; with
    `before_xid`, only those written by an earlier one.
    """

    start: int = 0
    end: int | None = None
    since_xid: str | None = None
    before_xid: str | None = None


def source_table(table: Table) -> sql.Composable:
    """Name the source table, without descendants that are tables of their own."""
    only = sql.SQL("only " if table.descendants == "apart" else "")
    return sql.SQL("{}{}").format(only, sql.Identifier(table.schema, table.name))


def source_rows(table: Table) -> sql.Composable:
    """Compose the rows to replicate, with their system columns, as what follows FROM, with the alias s."""
    if table.config.where is None:
        return sql.SQL("{} as s").format(source_table(table))
    return sql.SQL("(select tableoid, ctid, xmin, * from {} where ({}\n)) as s").format(
        source_table(table), sql.SQL(table.config.where)
    )


def copy_out(table: Table, rows: Window | BlockRange) -> sql.Composable:
    """Read rows in the types that `raw` has; the rows of a window come in its order."""
    return _copy_to_stdout(table, [selected(column) for column in table.columns], rows, copy_format(table))


def copy_out_keys(table: Table, rows: Window | BlockRange) -> sql.Composable:
    """Read only the keys, as text in text format."""
    keys = [selected(table.column(name)) for name in table.key]
    return _copy_to_stdout(table, keys, rows, sql.SQL("text"))


def copy_out_text(table: Table, rows: Window) -> sql.Composable:
    """Read rows in text format, whatever their types."""
    return _copy_to_stdout(table, [selected(column) for column in table.columns], rows, sql.SQL("text"))


def window_end(table: Table, window: Window) -> sql.Composable:
    """Read the sort values, as text, of the last row of a full window, at the same snapshot."""
    return _last_of(table, window, _as_texts(table, _order(table, window)))


def window_end_and_place(table: Table, window: Window) -> sql.Composable:
    """Read the sort values, as text, of the last row of a full window, and where its version is stored."""
    place = [sql.SQL("s.tableoid::text"), sql.SQL("s.ctid::text")]
    return _last_of(table, window, [*_as_texts(table, _order(table, window)), *place])


def is_end_of(table: Table, window: Window, end: Sequence[str], place: Sequence[str]) -> sql.Composable:
    """Return whether `end`, read back, equals the sort values of the row at a place, and follows those before it."""
    order, (relation, ctid) = _order(table, window), place
    is_same = are_equal(table, order, [source_column(name) for name in order], end)
    values = [typed(table, name, value) for name, value in zip(order, end, strict=True)]
    is_next = sql.SQL("true") if window.after is None else follows(table, order, values, window.after)
    return sql.SQL("select {} and {} from {} where s.tableoid = {}::oid and s.ctid = {}::tid").format(
        is_same, is_next, source_rows(table), sql.Literal(relation), sql.Literal(ctid)
    )


def has_built_in_order(table: Table, window: Window) -> bool:
    """Return whether a window is ordered by built-in types only; the types of users are written with a schema."""
    return not any("." in table.column(name).source_type for name in _order(table, window))


def last_key(table: Table, window: Window) -> sql.Composable:
    """Read the key, as text, of the last row of a full window."""
    return _last_of(table, window, _as_texts(table, table.key))


def keys_among(table: Table, keys: Sequence[tuple[str, ...]]) -> sql.Composable:
    """Read the keys, as text, of the rows whose key equals one of these."""
    return sql.SQL("select {} from {} where {}").format(
        comma(_as_texts(table, table.key)), source_rows(table), is_among(table, keys)
    )


def shared_key(table: Table) -> sql.Composable:
    """Read one key, as text, that several rows have; descendants by inheritance have no unique index in common."""
    return sql.SQL("select {} from {} group by {} having pg_catalog.count(*) > 1 limit 1").format(
        comma(_as_texts(table, table.key)), source_rows(table), comma(source_column(name) for name in table.key)
    )


def lesser_watermark(table: Table, one: str, other: str) -> sql.Composable:
    """Return the lesser of two values of the watermark column, as text."""
    assert table.watermark is not None
    lesser = sql.SQL("least({}, {})").format(typed(table, table.watermark, one), typed(table, table.watermark, other))
    return sql.SQL("select {}").format(as_text(table.column(table.watermark), lesser))


def has_null_watermark(table: Table) -> sql.Composable:
    """Return whether the watermark column is NULL in any row."""
    assert table.watermark is not None
    return sql.SQL("select exists (select from {} where {} is null)").format(
        source_rows(table), source_column(table.watermark)
    )


def has_values(table: Table, names: Sequence[str]) -> sql.Composable:
    """Return whether any row of the source has a value in any of these columns."""
    is_any = sql.SQL(" or ").join(
        sql.SQL("pg_catalog.num_nonnulls({}) > 0").format(source_column(name)) for name in names
    )
    return sql.SQL("select exists (select from {} where {})").format(source_rows(table), is_any)


def max_integer(table: Table) -> sql.Composable:
    """Return the largest watermark of a table that its sequence has handed out, as text.

    Larger numbers came from elsewhere, and say nothing about the numbers between.
    """
    assert table.watermark is not None
    column = table.column(table.watermark)
    largest = sql.SQL("select max({}) as value from {} as s").format(source_column(column.name), source_table(table))
    value: sql.Composable = sql.SQL("value")
    if table.watermark_sequence is not None:
        last = last_of_sequence(table.watermark_sequence)
        value = sql.SQL("case when value is not null then least(value, ({})) end").format(last)
    return sql.SQL("select case when value is not null then {} end from ({}) as l").format(
        as_text(column, value), largest
    )


def last_of_sequence(oid: int) -> sql.Composable:
    """Return the last number that a sequence has handed out; NULL without the privilege to read it."""
    return sql.SQL(
        "select case when pg_catalog.has_sequence_privilege(q.seqrelid, 'select, usage')"
        " then coalesce(pg_catalog.pg_sequence_last_value(q.seqrelid), q.seqstart - 1) end"
        " from pg_catalog.pg_sequence as q where q.seqrelid = {}"
    ).format(sql.Literal(oid))


def lock_source(table: Table) -> sql.Composable:
    """Lock the source table against TRUNCATE and rewrites; reads and writes go on."""
    return sql.SQL("lock table {} in access share mode").format(source_table(table))


def selected(column: Column) -> sql.Composable:
    """Compose an output column: a source column in the type that `raw` has, under its own name."""
    if not column.is_cast:
        return source_column(column.name)
    return sql.SQL("{} as {}").format(cast(column), sql.Identifier(column.name))


def cast(column: Column) -> sql.Composable:
    """Compose the cast of a source column to the type that `raw` has, or what its mask puts in its place.

    If that is text and a user defined the cast, concat() replaces it: like COPY, it writes a value with the output
    function of its type.
    """
    name, raw_type = source_column(column.name), sql.SQL(column.raw_type)
    if column.mask is not None:
        return sql.SQL("(case when {} is not null then {} end)::{}").format(name, _masked(column.mask, name), raw_type)
    if column.has_own_cast and column.raw_type in TEXTS:
        return sql.SQL("(case pg_catalog.num_nulls({0}) when 0 then pg_catalog.concat({0}) end)::{1}").format(
            name, raw_type
        )
    return sql.SQL("{}::{}").format(name, raw_type)


def _masked(mask: Mask, name: sql.Composable) -> sql.Composable:
    """Compose what a mask makes of a value. concat() writes it as COPY does, whatever casts a user defined."""
    text = sql.SQL("pg_catalog.concat({})").format(name)
    if mask.kind == "hash":
        inner, outer = (
            sql.SQL("(select pg_catalog.decode(pg_catalog.current_setting({}), 'hex'))").format(sql.Literal(pad))
            for pad in MASK_PADS
        )
        return sql.SQL(
            "pg_catalog.encode(pg_catalog.sha256({} || pg_catalog.sha256({}"
            " || pg_catalog.convert_to({}, 'UTF8'))), 'hex')"
        ).format(outer, inner, text)
    if mask.kind == "first":
        return sql.SQL("pg_catalog.left({}, {})").format(text, sql.Literal(mask.characters))
    return sql.Literal(mask.constant if mask.kind == "constant" else None)


def _last_of(table: Table, window: Window, values: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("select {} from {} order by {} offset {} limit 1").format(
        comma(values),
        _rows(table, window),
        ordered(table, _order(table, window)),
        sql.Literal(window.limit - 1),
    )


def _as_texts(table: Table, names: Sequence[str]) -> list[sql.Composable]:
    return [as_text(table.column(name), source_column(name)) for name in names]


def _copy_to_stdout(
    table: Table, columns: Sequence[sql.Composable], rows: Window | BlockRange, copy_format: sql.Composable
) -> sql.Composable:
    parts = [sql.SQL("select"), comma(columns), sql.SQL("from")]
    if isinstance(rows, Window):
        order = ordered(table, _order(table, rows))
        parts += [_rows(table, rows), sql.SQL("order by {} limit {}").format(order, sql.Literal(rows.limit))]
    else:
        parts += [source_rows(table), _conjunction(_in_blocks(rows))]
    return sql.SQL("copy ({}) to stdout with (format {})").format(sql.SQL(" ").join(parts), copy_format)


def _order(table: Table, window: Window) -> tuple[str, ...]:
    """Return the columns that a window is ordered by: unique, because the key is among them."""
    if table.watermark is None or window.read_from is None:
        return table.key
    return (table.watermark, *(name for name in table.key if name != table.watermark))


def _rows(table: Table, window: Window) -> sql.Composable:
    """Compose the rows of a window, from any row on, as what follows FROM, with the alias s.

    New versions are few among all rows, which no index shows: `offset 0` keeps the planner from reading all rows in the
    order of the key, to spare itself a sort.
    """
    if window.within is None or _is_by_index(table, window):
        return sql.SQL("{} {}").format(source_rows(table), _where(table, window, window.within))
    place = sql.SQL("s.tableoid, s.ctid, " if table.config.where is None else "")
    new = sql.SQL("(select {}s.* from {} {} offset 0) as s").format(
        place, source_rows(table), _conjunction(_in_blocks(window.within))
    )
    return sql.SQL("{} {}").format(new, _where(table, window, None))


def _is_by_index(table: Table, window: Window) -> bool:
    """Return whether a window has a condition that an index of the source may serve."""
    is_by_watermark = window.read_from is not None or window.is_null_watermark
    return window.keys is not None or (table.watermark is not None and is_by_watermark)


def _where(table: Table, window: Window, within: BlockRange | None) -> sql.Composable:
    conditions: list[sql.Composable] = []
    if table.watermark is not None and window.is_null_watermark:
        conditions.append(sql.SQL("{} is null").format(source_column(table.watermark)))
    elif table.watermark is not None and window.read_from is not None:
        conditions.append(
            sql.SQL("{} >= {}").format(source_column(table.watermark), _less_lookback(table, window.read_from))
        )
    if window.keys is not None:
        conditions.append(is_among(table, window.keys))
    if within is not None:
        conditions += _in_blocks(within)
    if window.after is not None:
        order = _order(table, window)
        conditions.append(follows(table, order, [source_column(name) for name in order], window.after))
    return _conjunction(conditions)


def _in_blocks(blocks: BlockRange) -> list[sql.Composable]:
    """Compose the conditions on the physical place and the age of row versions."""
    conditions: list[sql.Composable] = []
    if blocks.start:
        conditions.append(sql.SQL("s.ctid >= {}::tid").format(sql.Literal(f"({blocks.start},0)")))
    if blocks.end is not None:
        conditions.append(sql.SQL("s.ctid < {}::tid").format(sql.Literal(f"({blocks.end},0)")))
    if blocks.since_xid is not None:
        conditions.append(is_since(blocks.since_xid))
    if blocks.before_xid is not None:
        conditions.append(sql.SQL("not ({})").format(is_since(blocks.before_xid)))
    return conditions


def is_since(xid: str) -> sql.Composable:
    """Compose the condition that a transaction wrote a row version, or a later one ("System Columns" in the manual).

    age() counts back from the next transaction id, so a larger age means an earlier transaction, even after wraparound.
    It is below 0 where more than 2^31 transactions have followed: such a version is older than any id that is given.
    Most rows fail the first comparison, whose right side is computed once.
    """
    return sql.SQL("pg_catalog.age(s.xmin) <= (select pg_catalog.age({}::xid)) and pg_catalog.age(s.xmin) >= 0").format(
        sql.Literal(xid)
    )


def _conjunction(conditions: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("where ") + sql.SQL(" and ").join(conditions) if conditions else sql.SQL("")


def _less_lookback(table: Table, watermark: str) -> sql.Composable:
    """Return the watermark less the table's lookback, as an expression that can use an index."""
    assert table.watermark is not None
    value, config = typed(table, table.watermark, watermark), table.config
    if not table.has_lookback:
        return value
    if table.watermark_kind is WatermarkKind.INTEGER:
        return sql.SQL("({}::bigint - {})").format(sql.Literal(watermark), sql.Literal(config.lookback_rows))
    if table.watermark_kind is WatermarkKind.DATE:
        return sql.SQL("({} - {})").format(value, sql.Literal(math.ceil(config.lookback_seconds / SECONDS_PER_DAY)))
    return sql.SQL("({} - pg_catalog.make_interval(secs => {}))").format(value, sql.Literal(config.lookback_seconds))
