-- Schemas and grants of the warehouse, run as superuser; can be repeated. The roles and their passwords exist already.
revoke all on schema public from public;
revoke temporary on database warehouse from public;
-- Without this, a schema named like a role, which transformer may create, would give that role its functions.
alter database warehouse set search_path = public;
revoke execute on function lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) from public;
-- Advisory locks are known by their numbers alone: others could hold that of the runs. dbt commands take one, too.
do $$
declare
    lock regprocedure;
begin
    for lock in
        select oid from pg_catalog.pg_proc
        where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^pg_(try_)?advisory_(xact_)?lock'
    loop
        execute format('revoke execute on function %s from public', lock);
        execute format('grant execute on function %s to loader, transformer', lock);
    end loop;
end
$$;
grant connect, create, temporary on database warehouse to loader;
grant connect, create, temporary on database warehouse to transformer;
grant connect on database warehouse to analyst;

-- loader owns what it replicates; transformer reads it.
create schema if not exists raw authorization loader;
create schema if not exists etl authorization loader;
grant usage on schema raw, etl to transformer;
alter default privileges for role loader in schema raw grant select on tables to transformer;
alter default privileges for role loader in schema etl grant select on tables to transformer;

-- transformer owns what it builds; analyst reads only the marts.
create schema if not exists staging authorization transformer;
create schema if not exists intermediate authorization transformer;
create schema if not exists snapshots authorization transformer;
create schema if not exists audit authorization transformer;
-- To change a raw table, loader drops and recreates the views on it as their owner, with `set role transformer`.
grant transformer to loader with inherit false, set true;
-- loader purges tombstones once every model has read them; dbt records in this schema what it has read.
grant usage on schema intermediate to loader;
alter default privileges for role transformer in schema intermediate grant select on tables to loader;
create schema if not exists marts authorization transformer;
grant usage on schema marts to analyst;
alter default privileges for role transformer in schema marts grant select on tables to analyst;
