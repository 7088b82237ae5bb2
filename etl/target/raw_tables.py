"""Describes the raw tables of the target, in one set of queries for all of them. Begin at `read_raw_tables`."""

from __future__ import annotations

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.ledger.rejects import read_key
from etl.policy.schema_changes import RawTable
from etl.postgres.catalog_sql import PRIMARY_KEY
from etl.postgres.error_translation import errors_of

# No names are passed: one name that the target's encoding cannot hold would fail the query for all tables.
LIST_RELATIONS = f"""
    select
        c.relname,
        json_object_agg(a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)),
        ({PRIMARY_KEY.format(oid="c.oid")}),
        c.relnatts
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname = 'raw' and c.relkind not in ('i', 'I', 'c')
    group by c.oid, c.relname, c.relnatts
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
LIST_COLUMNS = """
    select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
    from pg_catalog.pg_attribute as a
    where a.attrelid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
        and a.attnum > 0 and not a.attisdropped
"""


def read_raw_tables(connection: Connection) -> dict[str, RawTable]:
    """Return, by name, the tables of schema raw, and those that are known only from the ledger."""
    with errors_of("target", "reading the raw tables"), connection.cursor() as cursor:
        cursor.execute(LIST_RELATIONS)
        relations = {name: (types, tuple(key or ()), slots) for name, types, key, slots in cursor}
        cursor.execute(LIST_KNOWN)
        known = {name: rest for name, *rest in cursor}
    found = {}
    for name in relations.keys() | known.keys():
        types, key, slots = relations.get(name, ({}, (), 0))
        loaded_types, loaded_numbers, has_load, rejected = known.get(name, ({}, {}, False, []))
        found[name] = RawTable(
            types=types,
            key=key,
            slots=slots,
            loaded_types=loaded_types,
            loaded_numbers=loaded_numbers,
            has_load=has_load,
            rejected_keys=tuple(map(read_key, rejected)),
        )
    return found


def read_column_types(cursor: Cursor, table_name: str) -> dict[str, str]:
    """Return the type of each column of a raw table; empty if there is no such table."""
    cursor.execute(LIST_COLUMNS, (table_name,))
    return dict(cursor.fetchall())
