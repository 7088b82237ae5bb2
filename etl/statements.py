"""Composes every SQL statement that names a table or a column of the user's. No I/O.

Identifiers are composed with psycopg2.sql and values are literals or parameters; nothing is formatted into SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from etl.model import Column, Table

RAW_SCHEMA = "raw"
META_COLUMNS = ("_etl_run_id", "_etl_synced_at", "_etl_deleted_at")
# Temporary, one a session: the rows of the batch in hand.
BATCH = sql.Identifier("pg_temp", "etl_batch")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which rows a batch holds: those after `after` in the order of (watermark, key), `limit` at most.

    `read_from` is the watermark, inclusive; None reads rows of any watermark.
    `is_null_watermark` reads the rows whose watermark column is NULL, in the order of the key.
    """

    read_from: str | None = None
    is_null_watermark: bool = False
    after: tuple[str, ...] | None = None
    limit: int | None = None


def source_table(table: Table) -> sql.Composable:
    only = sql.SQL("only " if table.has_descendants_apart else "")
    return sql.SQL("{}{}").format(only, sql.Identifier(table.schema, table.name))


def source_column(name: str) -> sql.Identifier:
    """Name a column of the source table, always by its alias: ORDER BY prefers a bare name's output column."""
    return sql.Identifier("s", name)


def raw_table(table_name: str) -> sql.Identifier:
    return sql.Identifier(RAW_SCHEMA, table_name)


def copy_out(table: Table, window: Window) -> sql.Composable:
    """Read the rows of a window, as `raw` keeps them, in its order if it is limited."""
    return sql.SQL("copy ({}) to stdout with (format {})").format(
        sql.SQL(" ").join(
            [
                sql.SQL("select"),
                _comma(_selected(column) for column in table.columns),
                sql.SQL("from {} as s").format(source_table(table)),
                _conditions(table, window),
                *_order_and_limit(table, window),
            ]
        ),
        _copy_format(table),
    )


def window_end(table: Table, window: Window) -> sql.Composable:
    """Read the order values, as text, of the last row of a full window, at the same snapshot."""
    if window.limit is None:
        raise ValueError("expected a limited window: the last row of an unlimited one has no place")
    order = _order(table, window)
    return sql.SQL("select {} from {} as s {} order by {} offset {} limit 1").format(
        _comma(sql.SQL("{}::text").format(source_column(name)) for name in order),
        source_table(table),
        _conditions(table, window),
        _comma(map(source_column, order)),
        sql.Literal(window.limit - 1),
    )


def copy_in(table: Table, into: sql.Composable, *, freeze: bool) -> sql.Composable:
    return sql.SQL("copy {} ({}) from stdin with (format {}, freeze {})").format(
        into,
        _comma(sql.Identifier(column.name) for column in table.columns),
        _copy_format(table),
        sql.SQL("true" if freeze else "false"),
    )


def create_raw(table: Table) -> sql.Composable:
    """Create the raw table without key and metadata: both are cheaper once it is filled."""
    return sql.SQL("create table {} ({})").format(raw_table(table.name), _definitions(table.columns))


def complete_raw(table: Table, run_id: int) -> sql.Composable:
    """Add metadata, key and index to a raw table just filled.

    A constant default of a new column is stored once, not per row (ALTER TABLE, Notes, in the manual).
    """
    raw = raw_table(table.name)
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
    ).format(raw=raw, run_id=sql.Literal(run_id), key=_comma(map(sql.Identifier, table.key)))


def analyze_raw(table: Table) -> sql.Composable:
    return sql.SQL("analyze {}").format(raw_table(table.name))


def create_batch(table: Table) -> sql.Composable:
    return sql.SQL("create temporary table etl_batch ({})").format(_definitions(table.columns))


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
        columns=_comma(map(sql.Identifier, names)),
        batch_columns=_comma(sql.Identifier("b", name) for name in names),
        raw_columns=_comma(sql.Identifier("r", name) for name in names),
        run_id=sql.Literal(run_id),
        same_key=sql.SQL(" and ").join(
            sql.SQL("{} = {}").format(sql.Identifier("b", name), sql.Identifier("r", name)) for name in table.key
        ),
        first_key=sql.Identifier(table.key[0]),
        key=_comma(map(sql.Identifier, table.key)),
        assignments=_comma(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names),
    )


def max_integers(tables: Sequence[Table]) -> sql.Composable:
    """Answer one row: the largest watermark of each table, as text."""
    return sql.SQL("select {}").format(
        _comma(
            sql.SQL("(select max({})::text from {} as s)").format(source_column(table.watermark), source_table(table))
            for table in tables
            if table.watermark is not None
        )
    )


def lock_source(table: Table) -> sql.Composable:
    return sql.SQL("lock table {} in access share mode").format(source_table(table))


def count_source(table: Table) -> sql.Composable:
    """Answer one row, rows and a checksum of their text, of the whole source table."""
    return _checksum([_selected(column) for column in table.columns], source_table(table), sql.SQL("true"))


def count_raw(table: Table) -> sql.Composable:
    """The same over the rows of `raw` that are not tombstones."""
    columns = [source_column(column.name) for column in table.columns]
    return _checksum(columns, raw_table(table.name), sql.SQL("s._etl_deleted_at is null"))


def _checksum(columns: Sequence[sql.Composable], relation: sql.Composable, condition: sql.Composable) -> sql.Composable:
    # The hash works on the bytes of the text in the server's encoding, which both sides share (UTF-8).
    return sql.SQL(
        "select count(*), coalesce(sum(hashtextextended(picked::text, 0)::numeric), 0)::text"
        " from (select {} from {} as s where {}) as picked"
    ).format(_comma(columns), relation, condition)


def _selected(column: Column) -> sql.Composable:
    if not column.is_cast:
        return source_column(column.name)
    return sql.SQL("{}::{} as {}").format(
        source_column(column.name), sql.SQL(column.raw_type), sql.Identifier(column.name)
    )


def _definitions(columns: Sequence[Column]) -> sql.Composable:
    # raw_type is what format_type() wrote: a type expression with its identifiers quoted by the server.
    return _comma(sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.raw_type)) for column in columns)


def _copy_format(table: Table) -> sql.SQL:
    return sql.SQL("binary" if table.is_binary else "text")


def _order(table: Table, window: Window) -> tuple[str, ...]:
    """Return the columns that a window is ordered by: unique, because the key is among them."""
    if table.watermark is None or window.is_null_watermark or window.read_from is None:
        return table.key
    return (table.watermark, *(name for name in table.key if name != table.watermark))


def _conditions(table: Table, window: Window) -> sql.Composable:
    conditions: list[sql.Composable] = []
    if table.watermark is not None and window.is_null_watermark:
        conditions.append(sql.SQL("{} is null").format(source_column(table.watermark)))
    elif table.watermark is not None and window.read_from is not None:
        lower = _typed(table, table.watermark, window.read_from)
        conditions.append(sql.SQL("{} >= {}").format(source_column(table.watermark), lower))
    if window.after is not None:
        order = _order(table, window)
        conditions.append(
            sql.SQL("({}) > ({})").format(
                _comma(map(source_column, order)),
                _comma(_typed(table, name, value) for name, value in zip(order, window.after, strict=True)),
            )
        )
    if not conditions:
        return sql.SQL("")
    return sql.SQL("where ") + sql.SQL(" and ").join(conditions)


def _order_and_limit(table: Table, window: Window) -> list[sql.Composable]:
    if window.limit is None:
        return []
    return [
        sql.SQL("order by {}").format(_comma(map(source_column, _order(table, window)))),
        sql.SQL("limit {}").format(sql.Literal(window.limit)),
    ]


def _typed(table: Table, name: str, value: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(table.column(name).source_type))


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
