-- What gives the stored rows of the given tables their values, as a hash for each column: its number and type, the
-- labels of enum types in it, the expression of a virtual column, and the value in rows older than the column.
-- Types that a user made have oids from 16384 on. Partitions and descendants by inheritance count with their table.
with recursive parts as (
    select
        given.table_oid,
        given.table_oid as oid
    from unnest(%(oids)s::oid[]) as given (table_oid)
    union
    select
        p.table_oid,
        i.inhrelid as oid
    from parts as p
    inner join pg_catalog.pg_inherits as i on p.oid = i.inhparent
),

stored as (
    select
        p.table_oid,
        a.attname,
        a.atttypid,
        pg_catalog.concat_ws(
            ' ', p.oid, a.attnum, a.atttypid, a.atttypmod, a.attmissingval,
            case when a.attgenerated = 'v' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end
        ) as found
    from parts as p
    inner join pg_catalog.pg_attribute as a on p.oid = a.attrelid and a.attnum > 0 and not a.attisdropped
    left join pg_catalog.pg_attrdef as d on a.attrelid = d.adrelid and a.attnum = d.adnum
),

related as (
    select
        t.oid,
        t.typbasetype as other
    from pg_catalog.pg_type as t
    union all
    select
        t.oid,
        t.typelem as other
    from pg_catalog.pg_type as t
    union all
    select
        r.rngtypid as oid,
        r.rngsubtype as other
    from pg_catalog.pg_range as r
    union all
    select
        t.oid,
        a.atttypid as other
    from pg_catalog.pg_type as t
    inner join pg_catalog.pg_attribute as a on t.typrelid = a.attrelid and a.attnum > 0 and not a.attisdropped
),

used as (
    select
        s.table_oid,
        s.attname,
        s.atttypid as oid
    from stored as s
    where s.atttypid >= 16384
    union
    select
        u.table_oid,
        u.attname,
        r.other as oid
    from used as u
    inner join related as r on u.oid = r.oid
    where r.other >= 16384
),

facts as (
    select
        s.table_oid,
        s.attname,
        s.found
    from stored as s
    union all
    select
        u.table_oid,
        u.attname,
        pg_catalog.concat_ws(' ', e.oid, e.enumlabel) as found
    from used as u
    inner join pg_catalog.pg_enum as e on u.oid = e.enumtypid
)

select
    f.table_oid,
    f.attname::text as name,
    pg_catalog.md5(string_agg(f.found, e'\n' order by pg_catalog.convert_to(f.found, 'UTF8'))) as content
from facts as f
group by f.table_oid, f.attname
order by f.table_oid, f.attname
