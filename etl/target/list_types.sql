-- Built-in types and those of extensions: a user-defined type may differ from one of the same name on the source.
-- With each, the equality operator of its default btree operator class, if rows can be joined on it.
with classes as (
    select
        c.opcintype as type_oid,
        p.oid as operator_oid,
        n.nspname::text as operator_schema,
        p.oprname::text as operator_name
    from pg_catalog.pg_opclass as c
    inner join pg_catalog.pg_am as m on c.opcmethod = m.oid and m.amname = 'btree'
    inner join pg_catalog.pg_amop as a
        on
            c.opcfamily = a.amopfamily
            and c.opcintype = a.amoplefttype
            and c.opcintype = a.amoprighttype
            and a.amopstrategy = 3
    inner join pg_catalog.pg_operator as p on a.amopopr = p.oid
    inner join pg_catalog.pg_namespace as n on p.oprnamespace = n.oid
    inner join pg_catalog.pg_proc as f on p.oprcode = f.oid
    inner join pg_catalog.pg_language as l on f.prolang = l.oid
    where
        c.opcdefault
        and (p.oprcanmerge or p.oprcanhash)
        and l.lanname <> 'sql'  -- the planner puts its text in the operator's place, which cannot be joined on
),

types as (
    select
        t.oid,
        pg_catalog.format_type(t.oid, null) as name,
        case
            when t.typtype = 'r' then 'pg_catalog.anyrange'::regtype::oid
            when t.typtype = 'm' then pg_catalog.to_regtype('pg_catalog.anymultirange')::oid
            when t.typcategory = 'A' and t.typlen = -1 then 'pg_catalog.anyarray'::regtype::oid
        end as polymorphic_oid
    from pg_catalog.pg_type as t
    where
        t.typtype in ('b', 'r', 'm')
        and (
            t.oid < %(first_user_oid)s
            or exists (
                select from pg_catalog.pg_depend as d
                where d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
            )
        )
),

-- Such as varchar, which has the operator class of text. Of types of extensions, only those with their own count.
coercible as (
    select
        c.castsource as type_oid,
        c.casttarget as class_oid
    from pg_catalog.pg_cast as c
    where c.castmethod = 'b' and c.castcontext = 'i' and c.castsource < %(first_user_oid)s
)

select
    t.name,
    coalesce(
        own.type_oid is not null
        or t.polymorphic_oid is not null
        or exists(
            select from coercible as b
            inner join classes as k on b.class_oid = k.type_oid
            where b.type_oid = t.oid
        ),
        false
    ) as can_be_key,
    own.operator_schema,
    own.operator_name,
    own.operator_oid >= %(first_user_oid)s as has_own_operator
from types as t
left join classes as own on t.oid = own.type_oid
