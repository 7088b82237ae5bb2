"""Composes the statements that create, fill and change raw tables. No I/O.

As in `etl.source.statements`, identifiers are composed with psycopg2.sql and values are literals or parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import sql

from etl.keys.comparisons import as_text, same_key
from etl.model import RAW_SCHEMA, Table
from etl.postgres.sql import SECONDS_PER_DAY, comma, copy_format
from etl.target.own_names import loading_table

# Temporary tables of the session: the rows of the current batch, and the keys that a load keeps.
BATCH = sql.Identifier("pg_temp", "etl_batch")
KEYS = sql.Identifier("pg_temp", "etl_keys")


def raw_table(table_name: str) -> sql.Identifier:
    return sql.Identifier(RAW_SCHEMA, table_name)


def copy_in(table: Table, into: sql.Composable, *, freeze: bool) -> sql.Composable:
    return sql.SQL("copy {} ({}) from stdin with (format {}, freeze {})").format(
        into,
        comma(sql.Identifier(column.name) for column in table.columns),
        copy_format(table),
        sql.SQL("true" if freeze else "false"),
    )


def create_raw(table: Table, into: sql.Identifier) -> sql.Composable:
    """Create a raw table without key and metadata: both are cheaper to add once it is filled."""
    # raw_type is the name of a type and nothing else: the model refuses any other text.
    columns = comma(
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.raw_type)) for column in table.columns
    )
    return sql.SQL("create table {} ({})").format(into, columns)


def complete_raw(table: Table, into: sql.Identifier, run_id: int, *, key_name: str, index_name: str) -> sql.Composable:
    """Add metadata, key and index to a raw table that was just filled.

    A constant default of a new column is stored once, not per row (ALTER TABLE, Notes, in the manual). The index is
    for queries of what later runs change, so it leaves out the rows of this one.
    """
    return sql.SQL(
        "alter table {raw}"
        " add column _etl_run_id bigint default {run_id},"
        " add column _etl_synced_at timestamptz default transaction_timestamp(),"
        " add column _etl_deleted_at timestamptz,"
        " add constraint {key_name} primary key ({key});"
        " alter table {raw}"
        " alter column _etl_run_id drop default,"
        " alter column _etl_synced_at drop default;"
        " create index {index_name} on {raw} (_etl_run_id) where _etl_run_id > {run_id}"
    ).format(
        raw=into,
        run_id=sql.Literal(run_id),
        key_name=sql.Identifier(key_name),
        key=comma(map(sql.Identifier, table.key)),
        index_name=sql.Identifier(index_name),
    )


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


def create_empty(table: Table) -> sql.Composable:
    """Create a raw table without columns, which gets what default privileges grant on a table of schema raw."""
    return sql.SQL("create table {} ()").format(raw_table(table.name))


def drop_raw(table: Table) -> sql.Composable:
    return sql.SQL("drop table {}").format(raw_table(table.name))


def carry_rows(table: Table, names: Sequence[str], run_id: int, *, as_tombstones: bool) -> sql.Composable:
    """Copy the raw rows whose keys the table being loaded lacks into it, with the columns `names`.

    With `as_tombstones`, live rows become tombstones. Returns one row: how many live rows were copied, and how many
    live rows the raw table has.
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
        loading=loading_table(table.name),
        raw=raw_table(table.name),
        names=comma(map(sql.Identifier, names)),
        values=comma(sql.Identifier("r", name) for name in names),
        run_id=sql.Literal(run_id),
        became=became,
        same_key=same_key(table, "l", "r"),
    )


def count_loaded(table: Table, *, has_tombstones: bool) -> sql.Composable:
    """Return one row: how many rows the table being loaded has, and how many live rows the raw table has."""
    is_live = sql.SQL("_etl_deleted_at is null" if has_tombstones else "true")
    return sql.SQL("select (select count(*) from {}), (select count(*) from {} where {})").format(
        loading_table(table.name), raw_table(table.name), is_live
    )


def analyze_raw(table: Table) -> sql.Composable:
    return sql.SQL("analyze {}").format(raw_table(table.name))


def drop_loading(table: Table) -> sql.Composable:
    return sql.SQL("drop table if exists {}").format(loading_table(table.name))


def create_keys(table: Table) -> sql.Composable:
    return sql.SQL("create temporary table etl_keys on commit drop as select {} from {} with no data").format(
        comma(map(sql.Identifier, table.key)), loading_table(table.name)
    )


def copy_in_keys(table: Table) -> sql.Composable:
    return sql.SQL("copy {} ({}) from stdin with (format text)").format(KEYS, comma(map(sql.Identifier, table.key)))


def analyze_keys() -> sql.Composable:
    return sql.SQL("analyze {}").format(KEYS)


def drop_other_keys(table: Table) -> sql.Composable:
    """Delete the rows of the table being loaded whose keys are not in etl_keys."""
    return sql.SQL("delete from {} as r where not exists (select from {} as k where {})").format(
        loading_table(table.name), KEYS, same_key(table, "k", "r")
    )


def create_batch(table: Table) -> sql.Composable:
    """Create the temporary table of a batch, with the types that `raw` has."""
    return sql.SQL("create temporary table etl_batch on commit drop as select {} from {} with no data").format(
        comma(sql.Identifier(column.name) for column in table.columns), raw_table(table.name)
    )


def respelled_keys(table: Table) -> sql.Composable:
    """Select the keys, as text, of live raw rows whose key the batch replaces by an equal one of another spelling."""
    return sql.SQL(
        "select {texts} from {batch} as b join {raw} as r on {same_key} where r._etl_deleted_at is null"
        " and row({batch_key})::record operator(pg_catalog.*<>) row({raw_key})::record"
    ).format(
        texts=comma(as_text(table.column(name), sql.Identifier("r", name), is_source=False) for name in table.key),
        batch=BATCH,
        raw=raw_table(table.name),
        same_key=same_key(table, "b", "r"),
        batch_key=comma(sql.Identifier("b", name) for name in table.key),
        raw_key=comma(sql.Identifier("r", name) for name in table.key),
    )


def merge(table: Table, run_id: int) -> sql.Composable:
    """Merge the batch into `raw`; returns one row: how many rows were inserted, and how many updated.

    Rows that are the same byte for byte are left alone: `*<>` compares their binary images, so 1.0 and 1.00 differ, and
    json or point need no equality operator ("Composite Type Comparison" in the manual). xmax is 0 only in a row version
    that this statement inserted.
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


def lock_raw(table: Table) -> sql.Composable:
    return sql.SQL("lock table {} in access share mode").format(raw_table(table.name))


def bury_rows(table: Table, keys: sql.Composable, run_id: int) -> sql.Composable:
    """Turn the rows whose keys the relation `keys` holds into tombstones."""
    return sql.SQL(
        "update {raw} as r set _etl_deleted_at = transaction_timestamp(), _etl_run_id = {run_id},"
        " _etl_synced_at = transaction_timestamp()"
        " from {keys} as k where {same_key}"
    ).format(raw=raw_table(table.name), run_id=sql.Literal(run_id), keys=keys, same_key=same_key(table, "k", "r"))


def purge_tombstones(table: Table, days: float, run_id: int) -> sql.Composable:
    """Delete tombstones older than `days` that run `run_id` or an earlier one wrote."""
    return sql.SQL(
        "delete from {} where _etl_deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => {})"
        " and _etl_run_id <= {}"
    ).format(raw_table(table.name), sql.Literal(days * SECONDS_PER_DAY), sql.Literal(run_id))
