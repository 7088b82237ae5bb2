"""The roles of the embedded warehouse can do their work and nothing else."""

import psycopg2
import pytest

from etl.local import databases
from etl.local.servers import Server


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
