-- Built-in types and those of extensions: a user-defined type may differ from one of the same name on the source. The
-- owner of a type can give it casts, which would run as this role, and the owner of an extension can add types to it: a
-- type counts only if it belongs to a superuser, to the owner of the database or to this role.
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

own_classes as (
    select
        c.type_oid,
        array[c.operator_schema, c.operator_name] as operator
    from classes as c
    where c.operator_oid >= %(first_user_oid)s
),

-- Such as varchar, which has the operator class of text.
coercible as (
    select c.castsource as type_oid
    from pg_catalog.pg_cast as c
    inner join classes as k on c.casttarget = k.type_oid
    where c.castmethod = 'b' and c.castcontext = 'i' and c.castsource < %(first_user_oid)s  -- noqa: RF02
)

select
    pg_catalog.format_type(t.oid, null) as name,
    t.typtype <> 'b'
    or (t.typcategory = 'A' and t.typlen = -1)
    or t.oid in (select c.type_oid from classes as c)
    or t.oid in (select c.type_oid from coercible as c) as can_be_key,
    o.operator as own_equality
from pg_catalog.pg_type as t
left join own_classes as o on t.oid = o.type_oid
where
    t.typtype in ('b', 'r', 'm')
    and (
        t.oid < %(first_user_oid)s  -- noqa: RF02
        or exists (
            select from pg_catalog.pg_depend as d
            where d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        )
        and (
            t.typowner = current_user::regrole
            or t.typowner in (
                select r.oid from pg_catalog.pg_roles as r
                where r.rolsuper
            )
            or t.typowner in (
                select b.datdba
                from pg_catalog.pg_database as b
                where b.datname = pg_catalog.current_database()
            )
        )
    )
