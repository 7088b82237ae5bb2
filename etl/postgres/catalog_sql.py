"""Fragments of catalog queries that several modules share. No I/O."""

from __future__ import annotations

# The table {oid} and all that inherit from it, as partitions or otherwise. pg_partition_tree() would wait for locks.
PARTS = """
    with recursive parts as (
        select {oid} as oid
        union
        select i.inhrelid from pg_catalog.pg_inherits as i join parts as p on p.oid = i.inhparent
    )
"""
# Whether d, which inherits from the table root, can be replicated on its own.
STANDS_APART = """
    d.relnamespace = root.relnamespace
    and exists (select from pg_catalog.pg_index as i where i.indrelid = d.oid and i.indisprimary)
"""
# The relations that hold the rows of the table {oid}: its partitions, or itself with its descendants by inheritance,
# unless one of these stands apart.
LEAVES = f"""
    {PARTS}
    select leaf.*
    from parts
    join pg_catalog.pg_class as leaf on leaf.oid = parts.oid and leaf.relkind <> 'p'
    where leaf.oid = {{oid}} or leaf.relispartition or not exists (
        select from parts as other
        join pg_catalog.pg_class as d on d.oid = other.oid and d.oid <> {{oid}}
        join pg_catalog.pg_class as root on root.oid = {{oid}}
        where {STANDS_APART}
    )
"""
# The descendants by inheritance of the table c: for each its schema, its name, and 'apart' if it stands apart.
DESCENDANTS = f"""
    case when c.relkind = 'r' and c.relhassubclass then (
        {PARTS.format(oid="c.oid")}
        select pg_catalog.json_agg(
            array[n.nspname, d.relname, case when {STANDS_APART} then 'apart' else '' end] order by n.nspname, d.relname
        )
        from parts
        join pg_catalog.pg_class as d on d.oid = parts.oid and d.oid <> c.oid
        join pg_catalog.pg_namespace as n on n.oid = d.relnamespace
        join pg_catalog.pg_class as root on root.oid = c.oid
    ) end
"""
# The columns of an index i, in index order; {condition} selects the index.
KEY_COLUMNS = """
    select array_agg(a.attname::text order by k.place)
    from pg_catalog.pg_index as i
    cross join unnest(i.indkey::int2[]) with ordinality as k (number, place)
    join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
    where k.place <= i.indnkeyatts and {condition}
"""
PRIMARY_KEY = KEY_COLUMNS.format(condition="i.indrelid = {oid} and i.indisprimary")
# The columns of an index u that identifies the rows of its table: it is unique over columns that are all NOT NULL.
IDENTIFYING_COLUMNS = (
    KEY_COLUMNS.format(condition="i.indexrelid = u.indexrelid and i.indisunique and i.indisvalid and i.indpred is null")
    + """
    group by i.indnkeyatts
    having count(*) = i.indnkeyatts and bool_and(a.attnotnull)
"""
)
# The tables of whose primary key a column has not just the built-in operator class of its type.
HAVE_KEY_ORDERS = """
    select i.indrelid
    from pg_catalog.pg_index as i
    cross join pg_catalog.generate_series(0, i.indnkeyatts - 1) as p (place)
    join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[p.place]
    join pg_catalog.pg_opclass as k on k.oid = i.indclass[p.place]
    where i.indisprimary and not (k.opcdefault and k.oid < {first_user_oid} and k.opcintype = a.atttypid)
"""
# Whether an index supports a search by the column a alone.
LEADS_AN_INDEX = """
    exists (
        select from pg_catalog.pg_index as i
        where i.indrelid = a.attrelid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
    )
"""
# The sequence that the column a takes its numbers from: that of an identity column, or one in its default expression,
# which need not be the one that the column owns.
DEFAULT_SEQUENCE = """
    select q.*
    from (
        select d.objid as oid
        from pg_catalog.pg_depend as d
        where d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype = 'i'
        union all
        select d.refobjid
        from pg_catalog.pg_attrdef as e
        join pg_catalog.pg_depend as d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = e.oid
        where e.adrelid = a.attrelid and e.adnum = a.attnum and d.refclassid = 'pg_catalog.pg_class'::regclass
    ) as used
    join pg_catalog.pg_sequence as q on q.seqrelid = used.oid
    order by q.seqcache desc, q.seqincrement desc
    limit 1
"""
