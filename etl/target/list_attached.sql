-- What users attached to a raw table, and a table that replaces it would not have.
with raw as (
    select c.* from pg_catalog.pg_class as c
    where c.oid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %(name)s::text))
),

attached (kind, name) as (
    select
        'row-level security' as kind,
        'policies' as name
    from raw
    where
        raw.relrowsecurity
        or exists (
            select from pg_catalog.pg_policy as p
            where p.polrelid = raw.oid
        )
    union all
    select
        'foreign key of' as kind,
        k.conrelid::regclass::text as name
    from raw
    inner join pg_catalog.pg_constraint as k
        on raw.oid = k.confrelid and k.contype = 'f' and raw.oid <> k.conrelid
    union all
    select
        'column' as kind,
        a.attname::text as name
    from raw
    inner join pg_catalog.pg_attribute as a on raw.oid = a.attrelid
    where a.attnum > 0 and not a.attisdropped and a.attname <> all(%(columns)s)  -- noqa: RF02
    union all
    select
        'constraint' as kind,
        k.conname::text as name
    from raw
    inner join pg_catalog.pg_constraint as k on raw.oid = k.conrelid
    where k.contype in ('c', 'u', 'x', 'f')
    union all
    select
        'trigger' as kind,
        t.tgname::text as name
    from raw
    inner join pg_catalog.pg_trigger as t on raw.oid = t.tgrelid and not t.tgisinternal
    union all
    select
        'index' as kind,
        i.indexrelid::regclass::text as name
    from raw
    inner join pg_catalog.pg_index as i on raw.oid = i.indrelid
    where
        not exists (
            select from pg_catalog.pg_constraint as k
            where k.conindid = i.indexrelid
        )
        and pg_catalog.pg_get_indexdef(i.indexrelid)
        !~ ' USING btree \(_etl_run_id\)( WHERE \(_etl_run_id > .*\))?$'
    union all
    select
        'option' as kind,
        unnest(raw.reloptions) as name
    from raw
    union all
    select
        'membership of publication' as kind,
        p.pubname::text as name
    from raw
    inner join pg_catalog.pg_publication_rel as m on raw.oid = m.prrelid
    inner join pg_catalog.pg_publication as p on m.prpubid = p.oid
)

select
    attached.kind,
    attached.name
from attached
order by attached.kind, attached.name
