"""A warehouse with the roles of the embedded servers, built once for the tests of what they may do and tell."""

import time
from collections.abc import Callable, Iterator
from subprocess import Popen

import pytest
from psycopg2.extensions import cursor as Cursor

from deploy.local import databases, provision
from deploy.local.servers import Server
from tests.integration.dbt.built_shop import Shop, open_source

LOGS_ALL = {"log_statement": "all"}


@pytest.fixture(scope="package")
def built(source_server, servers_home, free_port, tmp_path_factory) -> Iterator[tuple[Shop, dict[str, str]]]:
    """A shop whose warehouse has roles, built by them as `make pipeline` does, with the rows of one rule in audit."""
    server = Server(name="target", folder=servers_home / "roles-built", port=free_port(), major=18, settings=LOGS_ALL)
    try:
        server.start()
        provisioned = databases.provision_target(server)
        with open_source(source_server) as source_url:
            shop = Shop(
                source_url=source_url,
                target_url=provisioned["TARGET_DATABASE_URL"],
                folder=tmp_path_factory.mktemp("built"),
                more=(*provisioned.items(), ("DBT_LOG_LEVEL_FILE", "debug")),  # no secret is in the fullest log
            )
            shop.fill()
            shop.succeed("dbt-test", "--select", "fct_orders_total_adds_up")
            databases.provision_metadata(server)
            yield shop, provisioned | {"SUPERUSER": server.url(provision.TARGET_NAME), "LOG": str(server.log)}
    finally:
        server.remove()


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """A function that waits until a condition holds in a database, while a process is at work; for a minute at most."""

    def wait(process: Popen[str], cursor: Cursor, condition: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            cursor.execute(f"select {condition}")
            if cursor.fetchone() == (True,):
                return
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)

    return wait
