-- Views that read a relation, directly or through other views; the deepest first.
with recursive readers as (
    select
        %(oid)s::oid as oid,
        0 as depth
    union
    select
        w.ev_class as oid,
        r.depth + 1 as depth
    from readers as r
    inner join pg_catalog.pg_depend as d
        on
            r.oid = d.refobjid
            and d.refclassid = 'pg_catalog.pg_class'::regclass
            and d.classid = 'pg_catalog.pg_rewrite'::regclass
    inner join pg_catalog.pg_rewrite as w on d.objid = w.oid and r.oid <> w.ev_class
)

select
    c.oid,
    n.nspname,
    c.relname,
    c.relkind::text as kind,
    pg_catalog.pg_get_userbyid(c.relowner) as owner,
    pg_catalog.pg_get_viewdef(c.oid) as definition,
    coalesce(c.reloptions, '{}') as options,
    exists(
        select from pg_catalog.pg_trigger as t
        where t.tgrelid = c.oid and not t.tgisinternal
        union all
        select from pg_catalog.pg_rewrite as w
        where w.ev_class = c.oid and w.rulename <> '_RETURN'
        union all
        select from pg_catalog.pg_attrdef as f
        where f.adrelid = c.oid
    ) as has_more
from readers as r
inner join pg_catalog.pg_class as c on r.oid = c.oid
inner join pg_catalog.pg_namespace as n on c.relnamespace = n.oid
where r.depth > 0
group by c.oid, n.nspname
order by max(r.depth) desc, c.oid
