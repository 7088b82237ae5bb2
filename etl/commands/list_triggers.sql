-- The triggers of the given tables that run before each row is updated, in the order in which they run. A replica's
-- triggers do not run for the updates of clients.
with wanted as (
    select table_oid from unnest(%(oids)s::oid[]) as given (table_oid)
)

select
    t.tgrelid,
    t.tgname,
    l.lanname,
    p.proname,
    p.prosrc,
    t.tgqual is not null as has_condition,
    t.tgattr::text <> '' as has_columns,
    pg_catalog.string_to_array(pg_catalog.encode(t.tgargs, 'escape'), '\000') as arguments
from wanted
inner join pg_catalog.pg_trigger as t on wanted.table_oid = t.tgrelid
inner join pg_catalog.pg_proc as p on t.tgfoid = p.oid
inner join pg_catalog.pg_language as l on p.prolang = l.oid
where
    not t.tgisinternal and t.tgenabled in ('O', 'A')
    and t.tgtype & 1 = 1 and t.tgtype & 2 = 2 and t.tgtype & 16 = 16
order by t.tgrelid, t.tgname
