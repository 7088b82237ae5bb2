"""The roles of the embedded warehouse can do their work and nothing else."""

import re
from contextlib import closing

import psycopg2
import pytest

from deploy.local import databases, provision
from deploy.local.servers import Server


@pytest.fixture(scope="module")
def urls(servers_home, free_port):
    """A provisioned server of its own: roles belong to a whole server."""
    server = Server(name="target", folder=servers_home / "roles", port=free_port(), major=18)
    try:
        server.start()
        yield databases.provision_target(server)
    finally:
        server.remove()


def run(url, *statements):
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def filled(urls):
    run(urls["TARGET_DATABASE_URL"], "create table raw.orders (a int)", "create table etl.runs (a int)")
    run(
        urls["TRANSFORMER_DATABASE_URL"],
        "create view staging.stg_orders as select * from raw.orders",
        "create table marts.fct_orders as select * from staging.stg_orders",
    )
    return urls


def test_an_analyst_reads_the_marts(filled):
    run(filled["ANALYST_DATABASE_URL"], "select * from marts.fct_orders")


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("ANALYST_DATABASE_URL", "select * from raw.orders"),
        ("ANALYST_DATABASE_URL", "select * from etl.runs"),
        ("ANALYST_DATABASE_URL", "select * from staging.stg_orders"),
        ("ANALYST_DATABASE_URL", "delete from marts.fct_orders"),
        ("ANALYST_DATABASE_URL", "create table marts.mine (a int)"),
        ("ANALYST_DATABASE_URL", "create schema mine"),
        ("ANALYST_DATABASE_URL", "create table public.mine (a int)"),
        ("TRANSFORMER_DATABASE_URL", "insert into raw.orders values (1)"),
        ("TRANSFORMER_DATABASE_URL", "drop table raw.orders"),
        ("TRANSFORMER_DATABASE_URL", "delete from etl.runs"),
        ("TARGET_DATABASE_URL", "select * from marts.fct_orders"),
        ("TARGET_DATABASE_URL", "create table marts.mine (a int)"),
    ],
)
def test_forbidden_actions_of_a_role_fail(filled, role, statement):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(filled[role], statement)


HIDDEN = {
    "ANALYST_DATABASE_URL": ("raw", "etl", "staging", "intermediate", "snapshots", "audit"),
    "TARGET_DATABASE_URL": ("staging", "snapshots", "marts", "audit"),  # loader's: it asks intermediate for builds
}
CHANGES = (
    "insert into {} default values",
    "select * from {} for update",
    "delete from {}",
    "truncate {}",
    "drop table {}",
    "alter table {} add column mine int",
    "create index on {} ((1))",
    "lock table {} in share mode",
    "comment on table {} is 'mine'",
)
RELATIONS = """
    select format('%%I.%%I', nspname, relname), nspname
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace
    where relkind in ('r', 'v', 'm', 'p', 'f') and nspname = any(%s)
    order by 1
"""


def relations(urls, schemas):
    """Return the relations of schemas by name, asked of the superuser."""
    connection = psycopg2.connect(urls["SUPERUSER"])
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(RELATIONS, (list(schemas),))
            return cursor.fetchall()
    finally:
        connection.close()


def assert_analyst_reads_all_marts(urls):
    marts = relations(urls, ["marts"])
    assert len(marts) > 8
    for name, _ in marts:
        run(urls["ANALYST_DATABASE_URL"], f"select * from {name} limit 1")


def test_analyst_reads_every_mart_of_current_and_later_builds(built):
    shop, urls = built
    assert_analyst_reads_all_marts(urls)
    run(urls["TRANSFORMER_DATABASE_URL"], "drop table marts.dim_campaigns", "drop view marts.dim_products_history")
    shop.succeed("dbt-run", "--full-refresh")

    names = {name for name, _ in relations(urls, ["marts"])}
    assert {"marts.dim_campaigns", "marts.dim_products_history"} <= names
    assert_analyst_reads_all_marts(urls)


@pytest.mark.parametrize("role", HIDDEN)
def test_role_reads_nothing_in_other_schemas(built, role):
    _, urls = built
    hidden = relations(urls, HIDDEN[role])

    assert {schema for _, schema in hidden} == set(HIDDEN[role])
    for name, _ in hidden:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(urls[role], f"select * from {name} limit 1")


@pytest.mark.parametrize("role", HIDDEN)
def test_role_reads_no_files_passwords_or_other_databases(built, role):
    _, urls = built
    for statement in ("select pg_read_file('postgresql.conf')", "select * from pg_authid", "copy (select) to '/x'"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(urls[role], statement)
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        run(re.sub(r"/[^/]*$", f"/{provision.METADATA_NAME}", urls[role]), "select 1")


def test_transformer_cannot_change_loaded_data(built):
    """Not a row and not a table of raw, nor of the ledger; the roles of others are not its own."""
    _, urls = built
    loaded = [name for name, _ in relations(urls, ["raw", "etl"])]
    assert {"raw.orders", "raw.events", "etl.watermarks", "etl.runs"} <= set(loaded)
    transformer = urls["TRANSFORMER_DATABASE_URL"]
    for name in loaded:
        run(transformer, f"select * from {name} limit 1")
        for statement in CHANGES:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                run(transformer, statement.format(name))
    for statement in (
        "create table raw.mine (a int)",
        "create view raw.mine as select 1 as a",
        "create table etl.mine (a int)",
        "alter schema raw rename to mine",
        "drop schema etl cascade",
        "set role loader",
        "set role postgres",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(transformer, statement)


@pytest.mark.parametrize("role", ["TARGET_DATABASE_URL", "TRANSFORMER_DATABASE_URL", "ANALYST_DATABASE_URL"])
@pytest.mark.parametrize(
    "statement",
    [
        "create role mine",
        "create database mine",
        "alter role current_user superuser",
        "alter system set fsync = off",
        "select lo_from_bytea(0, 'mine')",
        "copy (select 1) to program 'cat'",
    ],
)
def test_no_role_creates_roles_databases_or_large_objects(urls, role, statement):
    connection = psycopg2.connect(urls[role])
    connection.autocommit = True
    with closing(connection), connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute(statement)


def test_loader_acts_as_transformer_only_on_request(built):
    """It puts views back as their owner; all that it does without asking is refused what the transformer may do."""
    _, urls = built

    run(urls["TARGET_DATABASE_URL"], "set role transformer", "select * from marts.fct_orders limit 1")
    for statement in ("set role analyst", "set role postgres", "drop table marts.fct_orders"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(urls["TARGET_DATABASE_URL"], statement)


@pytest.mark.parametrize(
    "statement",
    [
        "create temporary table mine (a int)",
        "create function pg_temp.f() returns int language sql as 'select 1'",
        "create function marts.f() returns int language sql as 'select 1'",
        "create function public.f() returns int language sql as 'select 1'",
        "select lo_from_bytea(0, 'mine')",
        "create view marts.mine as select 1 as a",
        "create index on marts.fct_orders (status)",
        "update marts.fct_orders set status = 'paid'",
        "truncate marts.fct_orders",
        "drop table marts.fct_orders",
        "set role transformer",
        "set role loader",
    ],
)
def test_analyst_cannot_create_or_change_anything(built, statement):
    _, urls = built

    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(urls["ANALYST_DATABASE_URL"], statement)
