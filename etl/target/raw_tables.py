"""Describes the raw tables of the target, in one set of queries for all of them. Begin at `read_raw_tables`."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.ledger.progress import SOURCE_COLUMNS, read_source
from etl.ledger.rejects import read_key
from etl.policy.schema_changes import KnownTable, RawTable
from etl.postgres.catalog_sql import PRIMARY_KEY
from etl.postgres.error_translation import errors_of
from etl.postgres.transactions import single

# No names are passed: one name that the target's encoding cannot hold would fail the query for all tables.
LIST_RELATIONS = f"""
    select
        c.relname,
        json_object_agg(a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)),
        ({PRIMARY_KEY.format(oid="c.oid")}),
        c.relnatts, c.relkind in ('r', 'p')
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname = 'raw' and c.relkind not in ('i', 'I', 'c')
    group by c.oid, c.relname, c.relnatts, c.relkind
"""
# The files of a table that is not partitioned are listed as its oid and its filenode.
LIST_REPLICATED = f"""
    select
        w.table_name, true, nullif(split_part(substring(r.filenodes from '^[0-9]+:[0-9]*(?= |$)'), ':', 1), '')::bigint,
        {", ".join(f"w.{column}" for column in SOURCE_COLUMNS)}
    from etl.watermarks as w
    left join etl.reconciliations as r using (table_name)
    union all
    select l.table_name, true, null, {", ".join(f"l.{column}" for column in SOURCE_COLUMNS)}
    from etl.loads as l
    where not exists (select from etl.watermarks as w where w.table_name = l.table_name)
    union all
    select c.relname, false, null, {", ".join(["null"] * len(SOURCE_COLUMNS))}
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = '_etl_run_id'
    where n.nspname = 'raw' and c.relkind in ('r', 'p') and c.relname !~ '^_etl_'
        and not exists (select from etl.watermarks as w where w.table_name = c.relname)
"""
LIST_KNOWN = """
    select
        t.table_name, coalesce(w.raw_types, '{}'), coalesce(w.column_numbers, '{}'), l.table_name is not null,
        (select coalesce(json_agg(r.key order by r.key), '[]')
            from etl.rejected_rows as r where r.table_name = t.table_name)
    from (
        select table_name from etl.watermarks
        union select table_name from etl.loads
        union select table_name from etl.rejected_rows
    ) as t
    left join etl.watermarks as w using (table_name)
    left join etl.loads as l using (table_name)
"""
OID = "pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))"
LIST_COLUMNS = f"""
    select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
    from pg_catalog.pg_attribute as a
    where a.attrelid = {OID} and a.attnum > 0 and not a.attisdropped
"""

READ_KEY = f"select ({PRIMARY_KEY.format(oid=OID)})"


def read_raw_tables(connection: Connection) -> dict[str, RawTable]:
    """Return, by name, the tables of schema raw, and those that are known only from the ledger."""
    with errors_of("target", "reading the raw tables"), connection.cursor() as cursor:
        cursor.execute(LIST_RELATIONS)
        relations = {
            name: {"types": types, "key": tuple(key or ()), "slots": slots, "is_table": is_table}
            for name, types, key, slots, is_table in cursor
        }
        cursor.execute(LIST_KNOWN)
        known = {name: rest for name, *rest in cursor}
    found = {}
    for name in relations.keys() | known.keys():
        loaded_types, loaded_numbers, has_load, rejected = known.get(name, ({}, {}, False, []))
        found[name] = RawTable(
            **relations.get(name, {}),
            loaded_types=loaded_types,
            loaded_numbers=loaded_numbers,
            has_load=has_load,
            rejected_keys=tuple(map(read_key, rejected)),
        )
    return found


def read_known_tables(connection: Connection) -> dict[str, KnownTable]:
    """Return, by name, the tables whose replication began, and those of schema raw that the ledger does not know."""
    with errors_of("target", "reading the raw tables"), connection.cursor() as cursor:
        cursor.execute(LIST_REPLICATED)
        return {
            name: KnownTable(has_progress=has_progress, oid=oid, source=read_source(*source))
            for name, has_progress, oid, *source in cursor
        }


def has_schema(cursor: Cursor) -> bool:
    """Return whether the target has schema raw."""
    cursor.execute("select pg_catalog.to_regnamespace('raw') is not null")
    return bool(single(cursor))


def has_key(cursor: Cursor, table_name: str, key: Sequence[str]) -> bool:
    """Return whether a raw table has this primary key; only a table has one."""
    cursor.execute(READ_KEY, (table_name,))
    return tuple(single(cursor) or ()) == tuple(key)


def read_column_types(cursor: Cursor, table_name: str) -> dict[str, str]:
    """Return the type of each column of a raw table; empty if there is no such table."""
    cursor.execute(LIST_COLUMNS, (table_name,))
    return dict(cursor.fetchall())
