"""Reads the foreign keys of the source from pg_catalog: information_schema hides them from a read-only role."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import cursor as Cursor

from etl.model import Table
from etl.policy.table_order import Reference

# A partition counts as its partitioned table: a foreign key may belong to a partition, or refer to one.
LIST_REFERENCES = """
    with recursive parts as (
        select given.oid, given.oid as table_oid from unnest(%s::oid[]) as given (oid)
        union all
        select i.inhrelid, p.table_oid
        from parts as p
        join pg_catalog.pg_class as parent on parent.oid = p.oid and parent.relkind = 'p'
        join pg_catalog.pg_inherits as i on i.inhparent = p.oid
    )
    select distinct child.table_oid, parent.table_oid
    from pg_catalog.pg_constraint as f
    join parts as child on child.oid = f.conrelid
    join parts as parent on parent.oid = f.confrelid
    where f.contype = 'f'
"""


def read_references(cursor: Cursor, tables: Sequence[Table]) -> tuple[Reference, ...]:
    """Return the pairs of these tables where the first has a foreign key to the second, which may be itself."""
    names = {table.oid: table.name for table in tables}
    cursor.execute(LIST_REFERENCES, (list(names),))
    return tuple(sorted((names[child], names[parent]) for child, parent in cursor))
