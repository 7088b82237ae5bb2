"""The two embedded servers of a benchmark: starts them, runs statements on them, and removes them with their data.

Begin at `open_stage`. Both servers are PostgreSQL 18 with fsync on.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from deploy.local.servers import Server, find_binaries, free_port

MAJOR = 18
# Large enough that no checkpoint happens during a load by chance.
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "maintenance_work_mem": "256MB"}
# Autovacuum after one contender's load would slow the next one: tables are vacuumed between measurements instead.
QUIET_SETTINGS = {**SETTINGS, "autovacuum": "off", "checkpoint_timeout": "1h"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The two running servers, and the folder of their data."""

    source: Server
    target: Server
    folder: Path

    def program(self, name: str) -> Path:
        """Return the path of a program of PostgreSQL, such as psql."""
        return find_binaries(MAJOR, self.folder) / "bin" / name

    @property
    def psql(self) -> str:
        """The shell command that starts psql for a script."""
        return f"{shlex.quote(str(self.program('psql')))} -XqAt -v ON_ERROR_STOP=1"

    def text(self, statement: sql.Composable) -> str:
        """Return a composed statement as text."""
        return statement.as_string(self._session)

    @cached_property
    def _session(self) -> Connection:
        """An idle session, whose encoding is used to quote identifiers."""
        return psycopg2.connect(self.source.url())

    def urls(self, source_database: str, target_database: str) -> dict[str, str]:
        """Return this process's environment with the URLs of two databases."""
        urls = {
            "SOURCE_DATABASE_URL": self.source.url(source_database),
            "TARGET_DATABASE_URL": self.target.url(target_database),
        }
        return {**os.environ, **urls}


@contextmanager
def open_stage(settings: Mapping[str, str] = SETTINGS) -> Iterator[Stage]:
    """Start a source and a target in a new folder; remove both at the end."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tidemark-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' user must be able to enter it
        source, target = (
            Server(name=side, folder=folder / side, port=free_port(), major=MAJOR, settings=settings)
            for side in ("source", "target")
        )
        try:
            source.start()
            target.start()
            yield Stage(source=source, target=target, folder=folder)
        finally:
            source.remove()
            target.remove()


def execute(url: str, *statements: str | sql.Composable, parameters: Mapping[str, Any] | None = None) -> None:
    """Run statements one by one, each in a transaction of its own."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement, parameters)


def fetch(url: str, statement: str | sql.Composable) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with closing(psycopg2.connect(url, options="-c TimeZone=UTC")) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def create_database(server: Server, name: str) -> None:
    """Create an empty database; drop an existing one of that name first."""
    drop_database(server, name)
    execute(server.url(), sql.SQL("create database {} template template0").format(sql.Identifier(name)))


def drop_database(server: Server, name: str) -> None:
    execute(server.url(), sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
