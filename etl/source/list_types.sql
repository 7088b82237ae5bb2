-- The given types, and the types that they refer to.
with recursive used as (
    select type_oid as oid from unnest(%(oids)s::oid[]) as given (type_oid)
    union
    select r.oid
    from used as u
    inner join pg_catalog.pg_type as t on u.oid = t.oid
    cross join lateral (values (t.typbasetype), (t.typelem)) as r (oid)
    where r.oid <> 0
)

select
    t.oid,
    pg_catalog.format_type(t.oid, null) as name,
    t.typtype::text as kind,
    t.typcategory = 'A' and t.typlen = -1 as is_array,
    t.typelem as element_oid,
    t.typbasetype as base_oid,
    pg_catalog.format_type(t.typbasetype, t.typtypmod) as base_name,
    t.typsend <> 0 and t.typreceive <> 0 as has_binary,
    exists(
        select from pg_catalog.pg_depend as d
        where d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
    ) as is_extension,
    exists(
        select from pg_catalog.pg_cast as c
        where
            c.castsource = t.oid
            and c.casttarget in ('pg_catalog.text'::regtype, 'pg_catalog.text[]'::regtype)
            and c.oid >= %(first_user_oid)s  -- noqa: RF02
    ) as has_own_cast
from used as u
inner join pg_catalog.pg_type as t on u.oid = t.oid
