-- Key columns that the operators of pg_catalog, found by their names, would not compare as the key's index does.
with recursive key_columns as (
    select
        i.indrelid as table_oid,
        a.attname::text as column_name,
        a.atttypid as type_oid,
        i.indclass[p.place] as class_oid,
        i.indcollation[p.place] as collation_oid
    from pg_catalog.pg_index as i
    cross join lateral pg_catalog.generate_series(0, i.indnkeyatts - 1) as p (place)
    inner join pg_catalog.pg_attribute as a on i.indrelid = a.attrelid and a.attnum = i.indkey[p.place]
    inner join pg_catalog.pg_class as x on i.indexrelid = x.oid
    inner join pg_catalog.pg_am as m on x.relam = m.oid and m.amname = 'btree'  -- not that of WITHOUT OVERLAPS
    where i.indrelid = any(%(oids)s) and i.indisprimary
),

domains as (
    select
        type_oid,
        type_oid as base_oid
    from key_columns
    union
    select
        d.type_oid,
        t.typbasetype
    from domains as d
    inner join pg_catalog.pg_type as t on d.base_oid = t.oid and t.typtype = 'd'
),

key_classes as (
    select
        k.table_oid,
        k.column_name,
        k.type_oid,
        k.collation_oid,
        c.opcname::text as class_name,
        c.opcfamily as family_oid,
        c.opcintype as operand_oid,
        o.typtype = 'p' as is_polymorphic,
        -- A name may find the operator of another type, to which a user's cast leads.
        c.opcintype <> b.oid and exists (
            select from pg_catalog.pg_cast as u
            where u.castsource = b.oid and u.castcontext = 'i' and u.oid >= %(first_user_oid)s
        ) as has_implicit_cast,
        t.typcollation not in (0, 'pg_catalog."default"'::regcollation, k.collation_oid) as has_other_collation
    from key_columns as k
    inner join pg_catalog.pg_type as t on k.type_oid = t.oid
    inner join domains as d on k.type_oid = d.type_oid
    inner join pg_catalog.pg_type as b on d.base_oid = b.oid and b.typtype <> 'd'
    inner join pg_catalog.pg_opclass as c on k.class_oid = c.oid
    inner join pg_catalog.pg_type as o on c.opcintype = o.oid
),

key_orders as (
    select
        k.*,
        f.schemas,
        f.names,
        f.hidden_schema,
        f.names = '{<,<=,=,>=,>}' and f.are_built_in as are_usual
    from key_classes as k
    cross join lateral (
        select
            coalesce(array_agg(n.nspname::text order by m.amopstrategy), '{}') as schemas,
            coalesce(array_agg(p.oprname::text order by m.amopstrategy), '{}') as names,
            min(n.nspname::text) filter (
                where not pg_catalog.has_schema_privilege(n.oid, 'usage')
            ) as hidden_schema,
            bool_and(p.oid < %(first_user_oid)s) as are_built_in
        from pg_catalog.pg_amop as m
        inner join pg_catalog.pg_operator as p on m.amopopr = p.oid
        inner join pg_catalog.pg_namespace as n on p.oprnamespace = n.oid
        where
            m.amopfamily = k.family_oid
            and m.amoplefttype = k.operand_oid
            and m.amoprighttype = k.operand_oid
            and m.amoppurpose = 's'
    ) as f
)

select
    k.table_oid,
    k.column_name,
    k.class_name,
    k.schemas,
    k.names,
    k.hidden_schema,
    k.is_polymorphic and k.has_implicit_cast as is_compared_as_record,
    case when not k.is_polymorphic and k.operand_oid <> k.type_oid
        then pg_catalog.format_type(k.operand_oid, null)
    end as operand_type,
    case when k.has_other_collation then n.nspname::text end as collation_schema,
    case when k.has_other_collation then c.collname::text end as collation_name
from key_orders as k
left join pg_catalog.pg_collation as c on k.collation_oid = c.oid
left join pg_catalog.pg_namespace as n on c.collnamespace = n.oid
where not k.are_usual or k.has_implicit_cast or k.has_other_collation
