"""Databases of one's own, made ready with the statements of docs/operations.md by an owner who is no superuser."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import psycopg2
import pytest

from deploy.local.servers import SUPERUSER, Server, find_binaries
from source_db import schema, seed
from tests.integration.dbt.built_shop import CHECKOUT, SCALE, Shop
from tests.servers import SETTINGS

PAGE = (CHECKOUT / "docs" / "operations.md").read_text(encoding="utf-8")
OWNER = "owner"  # what a managed service gives: it may create roles and databases
PSQL = "psql --no-psqlrc --quiet --csv --set=ON_ERROR_STOP=1"
SHELL = "sh -eu"
PASSWORDS = {role: f'{role}\'s "password"' for role in ("replicator", "loader", "transformer", "analyst", "monitor")}


def blocks(heading, language="sql"):
    """Return the code below a heading of the page, up to the next heading."""
    (section,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.+?)^```", section, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One server with a database of `OWNER`, and the programs to paste into."""

    server: Server
    database: str

    def url(self, role):
        password = self.server.password() if role == SUPERUSER else PASSWORDS.get(role, OWNER)
        return self.server.url(self.database, role, password)

    def paste(self, code, role=OWNER, program=PSQL):
        """Run a block as it is written; return what it prints."""
        parts = urlsplit(self.url(role))
        binaries = find_binaries(18, self.server.folder.parent) / "bin"
        finished = subprocess.run(
            program.split(),
            input=code,
            cwd=self.server.folder.parent,
            env={
                **os.environ,
                **{f"{name.upper()}_PASSWORD": password for name, password in PASSWORDS.items()},
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "PGHOST": str(parts.hostname),
                "PGPORT": str(parts.port),
                "PGUSER": role,
                "PGPASSWORD": unquote(str(parts.password)),
                "PGDATABASE": self.database,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def query(self, statement, role=OWNER):
        """Run a statement; return the names of its columns and its rows."""
        connection = psycopg2.connect(self.url(role))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                if cursor.description is None:
                    return [], []
                return [column.name for column in cursor.description], cursor.fetchall()
        finally:
            connection.close()

    def force(self, statement):
        """Run a statement as superuser, to bring about what takes hours."""
        return self.query(statement, SUPERUSER)[1]


@contextmanager
def open_side(home, name, major, port) -> Iterator[Side]:
    """Start a server of its own, for roles belong to a whole server, with a database of `OWNER`."""
    server = Server(name=name, folder=home / name, port=port, major=major, settings=SETTINGS)
    try:
        server.start()
        database = "warehouse" if name.endswith("target") else "shop"
        control = psycopg2.connect(server.url())
        control.autocommit = True
        with control.cursor() as cursor:
            cursor.execute(f"create role {OWNER} login createrole createdb password '{OWNER}'")
            cursor.execute(f"grant pg_read_all_stats to {OWNER} with admin option")
            cursor.execute(f"create database {database} owner {OWNER} template template0")
        control.close()
        yield Side(server=server, database=database)
    finally:
        server.remove()


@pytest.fixture(scope="package")
def source(servers_home, free_port):
    with open_side(servers_home, "operated-source", 16, free_port()) as side:
        schema.apply(side.url(OWNER))
        seed.load(side.url(OWNER), scale=SCALE)
        for block in blocks("Source"):
            side.paste(block)
        yield side


@pytest.fixture(scope="package")
def target(servers_home, free_port):
    with open_side(servers_home, "operated-target", 18, free_port()) as side:
        for block in blocks("Target"):
            side.paste(block)
        yield side


@pytest.fixture(scope="package")
def shop(source, target, tmp_path_factory):
    """A shop replicated and modelled by these roles, with the role that monitors it."""
    shop = Shop(
        source_url=source.url("replicator"),
        target_url=target.url("loader"),
        folder=tmp_path_factory.mktemp("operated"),
        more=(("TRANSFORMER_DATABASE_URL", target.url("transformer")),),
    )
    shop.succeed("extract")
    shop.succeed("dbt-run")
    target.paste(blocks("Monitoring")[0])
    return shop
