"""The roles of the embedded warehouse can do their work and nothing else."""

import psycopg2
import pytest

from etl.local import databases, provision
from etl.local.servers import Server
from tests.integration.dbt.built_shop import Shop, open_source


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
def test_what_a_role_must_not_do_fails(filled, role, statement):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(filled[role], statement)


NOT_FOR_ANALYSTS = ("raw", "etl", "staging", "intermediate", "snapshots", "audit")
RELATIONS = """
    select format('%%I.%%I', nspname, relname), nspname
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace
    where relkind in ('r', 'v', 'm', 'p', 'f') and nspname = any(%s)
    order by 1
"""


@pytest.fixture(scope="module")
def built(source_server, servers_home, free_port, tmp_path_factory):
    """A shop whose warehouse has roles, built by them as `make pipeline` does."""
    server = Server(name="target", folder=servers_home / "roles-built", port=free_port(), major=18)
    try:
        server.start()
        provisioned = databases.provision_target(server)
        with open_source(source_server) as source_url:
            shop = Shop(
                source_url=source_url,
                target_url=provisioned["TARGET_DATABASE_URL"],
                folder=tmp_path_factory.mktemp("built"),
                more=tuple(provisioned.items()),
            )
            shop.succeed("pipeline")
            yield shop, provisioned | {"SUPERUSER": server.url(provision.TARGET_NAME)}
    finally:
        server.remove()


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


def test_an_analyst_reads_every_mart_that_was_built_and_those_of_later_builds(built):
    shop, urls = built
    assert_analyst_reads_all_marts(urls)
    run(urls["TRANSFORMER_DATABASE_URL"], "drop table marts.dim_campaigns", "drop view marts.dim_products_history")
    shop.succeed("dbt-run", "--full-refresh")

    names = {name for name, _ in relations(urls, ["marts"])}
    assert {"marts.dim_campaigns", "marts.dim_products_history"} <= names
    assert_analyst_reads_all_marts(urls)


def test_an_analyst_reads_nothing_that_was_built_elsewhere(built):
    _, urls = built
    hidden = relations(urls, NOT_FOR_ANALYSTS)

    assert {schema for _, schema in hidden} == set(NOT_FOR_ANALYSTS)
    for name, _ in hidden:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(urls["ANALYST_DATABASE_URL"], f"select * from {name} limit 1")


@pytest.mark.parametrize(
    "statement",
    [
        "create temporary table mine (a int)",
        "create function pg_temp.f() returns int language sql as 'select 1'",
        "create function marts.f() returns int language sql as 'select 1'",
        "create function public.f() returns int language sql as 'select 1'",
        "create view marts.mine as select 1 as a",
        "create index on marts.fct_orders (status)",
        "update marts.fct_orders set status = 'paid'",
        "truncate marts.fct_orders",
        "drop table marts.fct_orders",
        "set role transformer",
        "set role loader",
    ],
)
def test_an_analyst_makes_and_changes_nothing_in_what_was_built(built, statement):
    _, urls = built

    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(urls["ANALYST_DATABASE_URL"], statement)
