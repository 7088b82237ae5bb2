-- Key columns that the operators of pg_catalog, found by their names, would not compare as the key's index does.
with recursive key_columns as materialized (
    select
        i.indrelid as table_oid,
        a.attname::text as column_name,
        a.atttypid as type_oid,
        i.indclass[p.place] as class_oid,
        i.indcollation[p.place] as collation_oid
    from pg_catalog.pg_index as i
    cross join lateral pg_catalog.generate_series(0, i.indnkeyatts - 1) as p (place)
    inner join pg_catalog.pg_attribute as a on i.indrelid = a.attrelid and a.attnum = i.indkey[p.place]
    where i.indexrelid = any(%(indexes)s)  -- noqa: RF02
),

kinds as materialized (
    select distinct
        k.type_oid,
        k.class_oid,
        k.collation_oid
    from key_columns as k
),

domains as (
    select
        k.type_oid,
        k.type_oid as base_oid
    from kinds as k
    union
    select
        d.type_oid,
        t.typbasetype
    from domains as d
    inner join pg_catalog.pg_type as t on d.base_oid = t.oid and t.typtype = 'd'
),

classes as (
    select
        k.type_oid,
        k.class_oid,
        k.collation_oid,
        c.opcname::text as class_name,
        c.opcfamily as family_oid,
        c.opcintype as operand_oid,
        o.typtype = 'p' as is_polymorphic,
        -- A name may find the operator of another type, to which a user's cast leads.
        c.opcintype <> b.oid and exists (
            select from pg_catalog.pg_cast as u
            where u.castsource = b.oid and u.castcontext = 'i' and u.oid >= %(first_user_oid)s  -- noqa: RF02
        ) as has_implicit_cast,
        t.typcollation not in (0, 'pg_catalog."default"'::regcollation, k.collation_oid) as has_other_collation
    from kinds as k
    inner join pg_catalog.pg_type as t on k.type_oid = t.oid
    inner join domains as d on k.type_oid = d.type_oid
    inner join pg_catalog.pg_type as b on d.base_oid = b.oid and b.typtype <> 'd'
    inner join pg_catalog.pg_opclass as c on k.class_oid = c.oid
    inner join pg_catalog.pg_type as o on c.opcintype = o.oid
    -- The operator classes of keys WITHOUT OVERLAPS are those of another index type.
    inner join pg_catalog.pg_am as m on c.opcmethod = m.oid and m.amname = 'btree'
),

operators as (
    select
        c.type_oid,
        c.class_oid,
        c.collation_oid,
        array_agg(n.nspname::text order by m.amopstrategy) as schemas,
        array_agg(p.oprname::text order by m.amopstrategy) as names,
        min(n.nspname::text) filter (where not pg_catalog.has_schema_privilege(n.oid, 'usage')) as hidden_schema,
        bool_and(p.oid < %(first_user_oid)s) as are_built_in  -- noqa: RF02
    from classes as c
    inner join pg_catalog.pg_amop as m
        on
            c.family_oid = m.amopfamily
            and c.operand_oid = m.amoplefttype
            and c.operand_oid = m.amoprighttype
            and m.amoppurpose = 's'
    inner join pg_catalog.pg_operator as p on m.amopopr = p.oid
    inner join pg_catalog.pg_namespace as n on p.oprnamespace = n.oid
    group by c.type_oid, c.class_oid, c.collation_oid
),

orders as materialized (
    select
        c.type_oid,
        c.class_oid,
        c.collation_oid,
        c.class_name,
        coalesce(f.schemas, '{}') as schemas,
        coalesce(f.names, '{}') as names,
        f.hidden_schema,
        c.is_polymorphic and c.has_implicit_cast as is_compared_as_record,
        case
            when not c.is_polymorphic and c.operand_oid <> c.type_oid
                then pg_catalog.format_type(c.operand_oid, null)
        end as operand_type,
        c.has_other_collation
    from classes as c
    left join operators as f
        on c.type_oid = f.type_oid and c.class_oid = f.class_oid and c.collation_oid = f.collation_oid
    where
        not coalesce(f.names = '{<,<=,=,>=,>}' and f.are_built_in, false)
        or c.has_implicit_cast
        or c.has_other_collation
)

select
    k.table_oid,
    k.column_name,
    o.class_name,
    o.schemas,
    o.names,
    o.hidden_schema,
    o.is_compared_as_record,
    o.operand_type,
    case when o.has_other_collation then n.nspname::text end as collation_schema,
    case when o.has_other_collation then c.collname::text end as collation_name
from key_columns as k
inner join orders as o
    on k.type_oid = o.type_oid and k.class_oid = o.class_oid and k.collation_oid = o.collation_oid
left join pg_catalog.pg_collation as c on o.collation_oid = c.oid
left join pg_catalog.pg_namespace as n on c.collnamespace = n.oid
