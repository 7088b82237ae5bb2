-- The roles of the embedded warehouse, as its superuser; may be repeated. Logins and passwords are set beside this.
revoke all on schema public from public;
revoke temporary on database warehouse from public;
revoke execute on function lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) from public;
grant connect, create, temporary on database warehouse to loader;
grant connect, create, temporary on database warehouse to transformer;
grant connect on database warehouse to analyst;

-- loader owns what it replicates; transformer reads it.
create schema if not exists raw authorization loader;
create schema if not exists etl authorization loader;
grant usage on schema raw, etl to transformer;
alter default privileges for role loader in schema raw grant select on tables to transformer;
alter default privileges for role loader in schema etl grant select on tables to transformer;

-- transformer owns what it builds; analyst reads the marts, and nothing else.
create schema if not exists staging authorization transformer;
create schema if not exists intermediate authorization transformer;
create schema if not exists snapshots authorization transformer;
create schema if not exists audit authorization transformer;
-- A change of a raw table takes the views on it off and puts them back, as their owner; loader has to ask for that.
grant transformer to loader with inherit false, set true;
-- Tombstones are purged once every model has read them, which dbt notes in this schema.
grant usage on schema intermediate to loader;
alter default privileges for role transformer in schema intermediate grant select on tables to loader;
create schema if not exists marts authorization transformer;
grant usage on schema marts to analyst;
alter default privileges for role transformer in schema marts grant select on tables to analyst;
