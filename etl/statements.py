"""Composes every SQL statement that names a table or a column of the user's. No I/O.

Identifiers are composed with psycopg2.sql and values are literals or parameters; nothing is formatted into SQL.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from etl.model import Column, Table, WatermarkKind

RAW_SCHEMA = "raw"
OWN_PREFIX = "_etl_"
META_COLUMNS = ("_etl_run_id", "_etl_synced_at", "_etl_deleted_at")
# Temporary, one a session: the rows of the batch in hand, and keys that a load keeps.
BATCH = sql.Identifier("pg_temp", "etl_batch")
KEYS = sql.Identifier("pg_temp", "etl_keys")
SECONDS_PER_DAY = 86_400
MAX_NAME_BYTES = 63


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which rows a batch holds: those after `after` in the order of (watermark, key), `limit` at most.

    `read_from` is the watermark, inclusive and less the table's lookback; None reads rows of any watermark.
    `is_null_watermark` reads the rows whose watermark column is NULL, `keys` those with one of these keys, both in
    the order of the key. Values are text, as the source writes them.
    """

    read_from: str | None = None
    is_null_watermark: bool = False
    keys: tuple[tuple[str, ...], ...] | None = None
    after: tuple[str, ...] | None = None
    limit: int


@dataclass(frozen=True, kw_only=True)
class BlockRange:
    """The rows of the blocks from `start` up to, not including, `end` of a table and of each partition.

    With `since_xid`, a 32-bit transaction id, only row versions written by that transaction or a later one;
    with `before_xid` only those written by an earlier one.
    """

    start: int = 0
    end: int | None = None
    since_xid: str | None = None
    before_xid: str | None = None


def source_table(table: Table) -> sql.Composable:
    only = sql.SQL("only " if table.has_descendants_apart else "")
    return sql.SQL("{}{}").format(only, sql.Identifier(table.schema, table.name))


def source_column(name: str) -> sql.Identifier:
    """Name a column of the source table, always by its alias: ORDER BY prefers a bare name's output column."""
    return sql.Identifier("s", name)


def raw_table(table_name: str) -> sql.Identifier:
    return sql.Identifier(RAW_SCHEMA, table_name)


def loading_table(table: Table) -> sql.Identifier:
    """Name the table that a first load in ranges fills, out of sight until it is whole.

    The name follows from the table's, so that a load is found also after the table was made anew.
    """
    return sql.Identifier(RAW_SCHEMA, _loading_name(table))


def _loading_name(table: Table) -> str:
    return f"_etl_loading_{hashlib.sha256(table.name.encode()).hexdigest()[:32]}"


def copy_out(table: Table, rows: Window | BlockRange) -> sql.Composable:
    """Read rows as `raw` keeps them, those of a window in its order."""
    return _copy_to_stdout(table, [selected(column) for column in table.columns], rows, _copy_format(table))


def copy_out_keys(table: Table, rows: Window | BlockRange) -> sql.Composable:
    """Read only the keys, as text in text format."""
    keys = [selected(table.column(name)) for name in table.key]
    return _copy_to_stdout(table, keys, rows, sql.SQL("text"))


def copy_out_text(table: Table, rows: Window) -> sql.Composable:
    """Read rows in text format, whatever their types."""
    return _copy_to_stdout(table, [selected(column) for column in table.columns], rows, sql.SQL("text"))


def window_end(table: Table, window: Window) -> sql.Composable:
    """Read the order values, as text, of the last row of a full window, at the same snapshot."""
    return _last_of(table, window, _order(table, window))


def last_key(table: Table, window: Window) -> sql.Composable:
    """Read the key, as text, of the last row of a full window."""
    return _last_of(table, window, table.key)


def lesser_watermark(table: Table, one: str, other: str) -> sql.Composable:
    """Answer the lesser of two values of the watermark column, as text."""
    assert table.watermark is not None
    return sql.SQL("select least({}, {})::text").format(
        typed(table, table.watermark, one), typed(table, table.watermark, other)
    )


def has_null_watermark(table: Table) -> sql.Composable:
    """Answer whether any row has no watermark."""
    assert table.watermark is not None
    return sql.SQL("select exists (select from {} as s where {} is null)").format(
        source_table(table), source_column(table.watermark)
    )


def copy_in(table: Table, into: sql.Composable, *, freeze: bool) -> sql.Composable:
    return sql.SQL("copy {} ({}) from stdin with (format {}, freeze {})").format(
        into,
        comma(sql.Identifier(column.name) for column in table.columns),
        _copy_format(table),
        sql.SQL("true" if freeze else "false"),
    )


def create_raw(table: Table, into: sql.Identifier) -> sql.Composable:
    """Create a raw table without key and metadata: both are cheaper once it is filled."""
    # raw_type is what format_type() wrote: a type expression with its identifiers quoted by the server.
    columns = comma(
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.raw_type)) for column in table.columns
    )
    return sql.SQL("create table {} ({})").format(into, columns)


def complete_raw(table: Table, into: sql.Identifier, run_id: int) -> sql.Composable:
    """Add metadata, key and index to a raw table just filled.

    A constant default of a new column is stored once, not per row (ALTER TABLE, Notes, in the manual).
    """
    return sql.SQL(
        "alter table {raw}"
        " add column _etl_run_id bigint default {run_id},"
        " add column _etl_synced_at timestamptz default transaction_timestamp(),"
        " add column _etl_deleted_at timestamptz,"
        " add primary key ({key});"
        " alter table {raw}"
        " alter column _etl_run_id drop default,"
        " alter column _etl_synced_at drop default;"
        " create index on {raw} (_etl_run_id)"
    ).format(raw=into, run_id=sql.Literal(run_id), key=comma(map(sql.Identifier, table.key)))


def add_column(table: Table, name: str) -> sql.Composable:
    """Add a column of the source to the raw table."""
    return sql.SQL("alter table {} add column {} {}").format(
        raw_table(table.name), sql.Identifier(name), sql.SQL(table.column(name).raw_type)
    )


def widen_column(table: Table, name: str) -> sql.Composable:
    """Give a raw column the type that the source's column has now."""
    return sql.SQL("alter table {} alter column {} type {}").format(
        raw_table(table.name), sql.Identifier(name), sql.SQL(table.column(name).raw_type)
    )


def has_values(table: Table, names: Sequence[str]) -> sql.Composable:
    """Answer whether any row of the source has a value in any of these columns."""
    is_any = sql.SQL(" or ").join(
        sql.SQL("pg_catalog.num_nonnulls({}) > 0").format(source_column(name)) for name in names
    )
    return sql.SQL("select exists (select from {} as s where {})").format(source_table(table), is_any)


def publish_raw(table: Table) -> sql.Composable:
    """Give a table loaded in ranges its name."""
    return sql.SQL("alter table {} rename to {}").format(loading_table(table), sql.Identifier(table.name))


def drop_raw(table: Table) -> sql.Composable:
    return sql.SQL("drop table {}").format(raw_table(table.name))


def rename_key(table: Table) -> sql.Composable:
    """Call the key of a table that replaced another as if it had been made under its name."""
    key = f"{table.name}_pkey"
    if len(key.encode()) > MAX_NAME_BYTES:
        return sql.SQL("select 1")
    return sql.SQL("alter index {} rename to {}").format(
        sql.Identifier(RAW_SCHEMA, f"{_loading_name(table)}_pkey"), sql.Identifier(key)
    )


def carry_rows(table: Table, names: Sequence[str], run_id: int, *, as_tombstones: bool) -> sql.Composable:
    """Copy these columns of the raw rows that the table being loaded lacks into it, live ones as tombstones if asked.

    Answers one row: how many live ones were carried, and how many rows were live.
    """
    became = sql.SQL("transaction_timestamp()" if as_tombstones else "null")
    return sql.SQL(
        "with carried as ("
        " insert into {loading} ({names}, _etl_run_id, _etl_synced_at, _etl_deleted_at)"
        " select {values},"
        " case when r._etl_deleted_at is null then {run_id} else r._etl_run_id end,"
        " case when r._etl_deleted_at is null then transaction_timestamp() else r._etl_synced_at end,"
        " coalesce(r._etl_deleted_at, {became})"
        " from {raw} as r where not exists (select from {loading} as l where {same_key})"
        " on conflict do nothing returning _etl_synced_at)"
        " select (select count(*) from carried where _etl_synced_at = transaction_timestamp()),"
        " (select count(*) from {raw} where _etl_deleted_at is null)"
    ).format(
        loading=loading_table(table),
        raw=raw_table(table.name),
        names=comma(map(sql.Identifier, names)),
        values=comma(sql.Identifier("r", name) for name in names),
        run_id=sql.Literal(run_id),
        became=became,
        same_key=same_key(table, "l", "r"),
    )


def count_loaded(table: Table) -> sql.Composable:
    """Answer one row: how many rows the table being loaded has, and how many live ones the raw table."""
    return sql.SQL(
        "select (select count(*) from {}),"
        " (select count(*) from {} as r where to_jsonb(r) ->> '_etl_deleted_at' is null)"
    ).format(loading_table(table), raw_table(table.name))


def analyze_raw(table: Table) -> sql.Composable:
    return sql.SQL("analyze {}").format(raw_table(table.name))


def drop_loading(table: Table) -> sql.Composable:
    return sql.SQL("drop table if exists {}").format(loading_table(table))


def create_keys(table: Table) -> sql.Composable:
    return sql.SQL("create temporary table etl_keys on commit drop as select {} from {} with no data").format(
        comma(map(sql.Identifier, table.key)), loading_table(table)
    )


def copy_in_keys(table: Table) -> sql.Composable:
    return sql.SQL("copy {} ({}) from stdin with (format text)").format(KEYS, comma(map(sql.Identifier, table.key)))


def analyze_keys() -> sql.Composable:
    return sql.SQL("analyze {}").format(KEYS)


def drop_other_keys(table: Table) -> sql.Composable:
    """Delete the rows of a table being loaded whose keys are not among etl_keys."""
    return sql.SQL("delete from {} as r where not exists (select from {} as k where {})").format(
        loading_table(table), KEYS, same_key(table, "k", "r")
    )


def create_batch(table: Table) -> sql.Composable:
    """Create the table of a batch, with the types that `raw` has."""
    return sql.SQL("create temporary table etl_batch as select {} from {} with no data").format(
        comma(sql.Identifier(column.name) for column in table.columns), raw_table(table.name)
    )


def merge(table: Table, run_id: int) -> sql.Composable:
    """Bring the batch into `raw`; answers one row: rows inserted, rows updated.

    Rows that are the same byte for byte are left alone: `*<>` compares the images, so that 1.0 and 1.00 differ
    and json or point need no equality operator ("Composite Type Comparison" in the manual). xmax is 0 only in a
    row version that this statement inserted.
    """
    names = [column.name for column in table.columns]
    return sql.SQL(
        "with merged as ("
        " insert into {raw} as r ({columns}, _etl_run_id, _etl_synced_at)"
        " select {batch_columns}, {run_id}, transaction_timestamp()"
        " from {batch} as b left join {raw} as r on {same_key}"
        " where r.{first_key} is null or r._etl_deleted_at is not null"
        " or row({batch_columns})::record operator(pg_catalog.*<>) row({raw_columns})::record"
        " on conflict ({key}) do update set {assignments},"
        " _etl_run_id = excluded._etl_run_id, _etl_synced_at = excluded._etl_synced_at, _etl_deleted_at = null"
        " returning r.xmax = 0 as is_inserted)"
        " select count(*) filter (where is_inserted), count(*) filter (where not is_inserted) from merged"
    ).format(
        raw=raw_table(table.name),
        batch=BATCH,
        columns=comma(map(sql.Identifier, names)),
        batch_columns=comma(sql.Identifier("b", name) for name in names),
        raw_columns=comma(sql.Identifier("r", name) for name in names),
        run_id=sql.Literal(run_id),
        same_key=same_key(table, "b", "r"),
        first_key=sql.Identifier(table.key[0]),
        key=comma(map(sql.Identifier, table.key)),
        assignments=comma(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names),
    )


def max_integer(table: Table) -> sql.Composable:
    """Answer the largest watermark of a table, as text."""
    assert table.watermark is not None
    return sql.SQL("select max({})::text from {} as s").format(source_column(table.watermark), source_table(table))


def lock_source(table: Table) -> sql.Composable:
    return sql.SQL("lock table {} in access share mode").format(source_table(table))


def lock_raw(table: Table) -> sql.Composable:
    return sql.SQL("lock table {} in access share mode").format(raw_table(table.name))


def selected(column: Column) -> sql.Composable:
    if not column.is_cast:
        return source_column(column.name)
    return sql.SQL("{} as {}").format(cast(column), sql.Identifier(column.name))


def cast(column: Column) -> sql.Composable:
    """A source column in the type that `raw` has.

    concat() writes a value with its type's output function, as COPY does, where a cast would do something else.
    """
    name, raw_type = source_column(column.name), sql.SQL(column.raw_type)
    if column.has_own_cast:
        return sql.SQL("(case pg_catalog.num_nulls({0}) when 0 then pg_catalog.concat({0}) end)::{1}").format(
            name, raw_type
        )
    return sql.SQL("{}::{}").format(name, raw_type)


def _copy_format(table: Table) -> sql.SQL:
    return sql.SQL("binary" if table.is_binary else "text")


def _last_of(table: Table, window: Window, names: Sequence[str]) -> sql.Composable:
    return sql.SQL("select {} from {} as s {} order by {} offset {} limit 1").format(
        comma(sql.SQL("{}::text").format(source_column(name)) for name in names),
        source_table(table),
        _where(table, window),
        comma(map(source_column, _order(table, window))),
        sql.Literal(window.limit - 1),
    )


def _copy_to_stdout(
    table: Table, columns: Sequence[sql.Composable], rows: Window | BlockRange, copy_format: sql.Composable
) -> sql.Composable:
    parts = [sql.SQL("select"), comma(columns), sql.SQL("from {} as s").format(source_table(table))]
    if isinstance(rows, Window):
        order = comma(map(source_column, _order(table, rows)))
        parts += [_where(table, rows), sql.SQL("order by {} limit {}").format(order, sql.Literal(rows.limit))]
    else:
        parts.append(_in_blocks(rows))
    return sql.SQL("copy ({}) to stdout with (format {})").format(sql.SQL(" ").join(parts), copy_format)


def _order(table: Table, window: Window) -> tuple[str, ...]:
    """Return the columns that a window is ordered by: unique, because the key is among them."""
    if table.watermark is None or window.read_from is None:
        return table.key
    return (table.watermark, *(name for name in table.key if name != table.watermark))


def _where(table: Table, window: Window) -> sql.Composable:
    conditions: list[sql.Composable] = []
    if table.watermark is not None and window.is_null_watermark:
        conditions.append(sql.SQL("{} is null").format(source_column(table.watermark)))
    elif table.watermark is not None and window.read_from is not None:
        conditions.append(
            sql.SQL("{} >= {}").format(source_column(table.watermark), _less_lookback(table, window.read_from))
        )
    if window.keys is not None:
        conditions.append(
            sql.SQL("({}) in ({})").format(comma(map(source_column, table.key)), key_values(table, window.keys))
        )
    if window.after is not None:
        order = _order(table, window)
        conditions.append(
            sql.SQL("({}) > ({})").format(comma(map(source_column, order)), _values(table, order, window.after))
        )
    return _conjunction(conditions)


def key_values(table: Table, keys: Sequence[tuple[str, ...]], *, is_source: bool = True) -> sql.Composable:
    """The right side of IN for keys as text: one array a column, planned at once.

    unnest() takes arrays and composite values apart, so keys that may hold such are listed one by one.
    """
    columns = [table.column(name) for name in table.key]
    types = [column.source_type if is_source else column.raw_type for column in columns]
    if any(column.is_cast or column.raw_type.endswith("[]") for column in columns):
        return comma(
            sql.SQL("({})").format(
                comma(
                    sql.SQL("{}::{}").format(sql.Literal(part), sql.SQL(name))
                    for part, name in zip(key, types, strict=True)
                )
            )
            for key in keys
        )
    arrays = [
        sql.SQL("{}::{}[]").format(sql.Literal([key[place] for key in keys]), sql.SQL(name))
        for place, name in enumerate(types)
    ]
    return sql.SQL("select * from unnest({})").format(comma(arrays))


def _in_blocks(blocks: BlockRange) -> sql.Composable:
    """Condition on the physical place and on the age of row versions ("System Columns" in the manual).

    age() counts from the next transaction id, so that a larger age is an earlier transaction, across the wraparound.
    """
    conditions: list[sql.Composable] = []
    if blocks.start:
        conditions.append(sql.SQL("s.ctid >= {}::tid").format(sql.Literal(f"({blocks.start},0)")))
    if blocks.end is not None:
        conditions.append(sql.SQL("s.ctid < {}::tid").format(sql.Literal(f"({blocks.end},0)")))
    age = "pg_catalog.age(s.xmin) {} pg_catalog.age({}::xid)"
    if blocks.since_xid is not None:
        conditions.append(sql.SQL(age).format(sql.SQL("<="), sql.Literal(blocks.since_xid)))
    if blocks.before_xid is not None:
        conditions.append(sql.SQL(age).format(sql.SQL(">"), sql.Literal(blocks.before_xid)))
    return _conjunction(conditions)


def _conjunction(conditions: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("where ") + sql.SQL(" and ").join(conditions) if conditions else sql.SQL("")


def _less_lookback(table: Table, watermark: str) -> sql.Composable:
    """Return the watermark less the lookback that the table declares, as an expression an index serves."""
    assert table.watermark is not None
    value, config = typed(table, table.watermark, watermark), table.config
    if not table.has_lookback:
        return value
    if table.watermark_kind is WatermarkKind.INTEGER:
        return sql.SQL("({}::bigint - {})").format(sql.Literal(watermark), sql.Literal(config.lookback_rows))
    if table.watermark_kind is WatermarkKind.DATE:
        return sql.SQL("({} - {})").format(value, sql.Literal(math.ceil(config.lookback_seconds / SECONDS_PER_DAY)))
    return sql.SQL("({} - pg_catalog.make_interval(secs => {}))").format(value, sql.Literal(config.lookback_seconds))


def _values(table: Table, names: Sequence[str], values: Sequence[str]) -> sql.Composable:
    return comma(typed(table, name, value) for name, value in zip(names, values, strict=True))


def typed(table: Table, name: str, value: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(table.column(name).source_type))


def same_key(table: Table, one: str, other: str) -> sql.Composable:
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier(one, name), sql.Identifier(other, name)) for name in table.key
    )


def comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
