"""The servers of the tests: containers where Docker answers, embedded ones where it does not. Begin at `choose`.

Tests ask the fixtures `source_server` and `target_server`, and are the same on both. Some take or make embedded servers
in any case: those that kill processes of a server, fill its disk, copy its data folder or start its programs, and those
of values between versions 16 and 18, with an extension that images lack.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from deploy.local import servers
from deploy.local.servers import SUPERUSER, Server

KINDS = ("auto", "containers", "embedded")
SIDES = ("source", "target")
DEFAULT_IMAGE = "postgres:17"
MAJORS = {"source": 16, "target": 18}  # of the embedded servers
# Tests restart and kill sessions, not the machine: durability costs time and shows nothing.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "max_wal_size": "128MB",  # the data may lie in memory
}
TEMPLATE = "template_of_tests"
SCRAM_ITERATIONS_SINCE = 160000
MEMORY = Path("/dev/shm")
LEAST_FREE_BYTES = 6 * 2**30  # of memory, for the servers of all processes; else their data lie on the disk
CONTAINER_SETTINGS = {**SETTINGS, "timezone": "UTC", "log_timezone": "UTC", "max_prepared_transactions": "10"}
INITDB_ARGUMENTS = "--locale=C.UTF-8 --encoding=UTF8"  # as the embedded servers are made
SHARED_MEMORY = "256m"  # Docker's 64 MB are too little for parallel queries
PORT = 5432
DOCKER_SOCKET = "http+unix://"  # as docker-py writes the address of a Unix socket
DOCKER_TIMEOUT_SECONDS = 300  # pulling an image takes some of them


class DatabaseServer(Protocol):
    """What tests know of a server."""

    @property
    def port(self) -> int:
        """Return its port."""

    def url(self, database: str = ..., user: str = ..., password: str | None = ...) -> str:
        """Return a libpq URL for a database of this server, as its superuser unless told otherwise."""

    def password(self) -> str:
        """Return the superuser's password."""


@dataclass(frozen=True, kw_only=True)
class ContainerServer:
    """A server in a container, by its address."""

    host: str
    port: int
    secret: str

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        found = self.secret if password is None else password
        return f"postgresql://{quote(user, safe='')}:{quote(found, safe='')}@{self.host}:{self.port}/{database}"

    def password(self) -> str:
        return self.secret


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which servers the tests get, and why."""

    images: dict[str, str] | None  # by side; None for embedded servers
    reason: str

    def __str__(self) -> str:
        if self.images is not None:
            found = ", ".join(f"{side} {image}" for side, image in self.images.items())
            return f"containers, {found} ({self.reason}); embedded where a test looks into its server"
        found = ", ".join(f"{side} PostgreSQL {major}" for side, major in MAJORS.items())
        return f"embedded servers, {found} ({self.reason})"

    @contextmanager
    def serve(self, side: str, home: Path) -> Iterator[DatabaseServer]:
        """Run the server of one side."""
        if self.images is not None:
            with serve_image(self.images[side], CONTAINER_SETTINGS) as server:
                yield server
            return
        embedded = Server(
            name=side, folder=home / side, port=servers.free_port(), major=MAJORS[side], settings=SETTINGS
        )
        try:
            embedded.start()
            yield embedded
        finally:
            embedded.remove()


EMBEDDED = Choice(images=None, reason="as asked")


def _prepare(server: DatabaseServer) -> None:
    """Make the template of the databases of a server, and its superuser's login cheap.

    A login costs either end some milliseconds, which is what makes a password hard to guess, and tests log in thousands
    of times. The template is empty, but has been opened once: its copies find what the first session of a database
    works out.
    """
    with closing(psycopg2.connect(server.url())) as control:
        control.autocommit = True
        with control.cursor() as cursor:
            if control.server_version >= SCRAM_ITERATIONS_SINCE:
                cursor.execute("set scram_iterations = 1")
                cursor.execute(
                    sql.SQL("alter role {} password {}").format(
                        sql.Identifier(SUPERUSER), sql.Literal(server.password())
                    )
                )
            cursor.execute(
                sql.SQL("create database {} template template0 encoding 'UTF8'").format(sql.Identifier(TEMPLATE))
            )
    psycopg2.connect(server.url(TEMPLATE)).close()


def create_database(server: DatabaseServer, name: str, template: str | None = None) -> None:
    """Create a database, as a copy of another one or empty."""
    statement = sql.SQL("create database {} template {} strategy file_copy").format(
        sql.Identifier(name), sql.Identifier(template or TEMPLATE)
    )
    try:
        _execute(server, statement)
    except psycopg2.errors.InvalidCatalogName:  # the first database of this server
        _prepare(server)
        _execute(server, statement)


def drop_database(server: DatabaseServer, name: str) -> None:
    """Drop a database, even if it is in use."""
    _execute(server, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _execute(server: DatabaseServer, statement: sql.Composable) -> None:
    with closing(psycopg2.connect(server.url())) as control:
        control.autocommit = True
        with control.cursor() as cursor:
            cursor.execute(statement)


def choose(kind: str, images: dict[str, str]) -> Choice:
    """Choose containers or embedded servers; images that are not here are pulled.

    Raises RuntimeError when containers are asked for and cannot be had.
    """
    if kind == "embedded":
        return EMBEDDED
    missing = find_obstacle(tuple(images.values()))
    if missing is None:
        return Choice(images=images, reason="as asked" if kind == "containers" else "Docker answers")
    if kind == "containers":
        raise RuntimeError(f"--servers=containers: {missing}; start Docker, or run with --servers=embedded")
    return Choice(images=None, reason=missing)


def choose_place() -> Path | None:
    """Return a folder in memory for the servers' data, where a database is made in a sixth of the time; None without.

    None where there is no such folder, too little room in it (a container has 64 MB), or no program may be run from it:
    where the servers' user cannot reach the wheel, its programs are copied beside the data.
    """
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        return None
    found = os.statvfs(MEMORY)
    available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = min(found.f_bavail * found.f_frsize, int(available[1]) * 1024 if available else 0)
    return MEMORY if free >= LEAST_FREE_BYTES and not found.f_flag & os.ST_NOEXEC else None


def find_obstacle(images: tuple[str, ...]) -> str | None:
    """Return why containers of these images cannot be started, None when they can."""
    import docker
    import requests
    from testcontainers.core.config import testcontainers_config

    try:
        version = _ask_docker_version()
    except (OSError, docker.errors.DockerException, requests.RequestException):
        return "Docker does not answer"
    reaper = () if testcontainers_config.ryuk_disabled else (testcontainers_config.ryuk_image,)
    with closing(docker.from_env(version=version, timeout=DOCKER_TIMEOUT_SECONDS)) as client:
        for image in {*images, *reaper}:
            try:
                client.images.get(image)
            except docker.errors.ImageNotFound:
                try:
                    client.images.pull(image)
                except docker.errors.APIError:
                    return f"the image {image} is not here and cannot be pulled"
    return None


def _ask_docker_version() -> str:
    """Return the newest version of its interface that Docker speaks; raise an error when it does not answer.

    A client that is to find the version out by itself asks while it is being made, and stays open when that fails.
    docker-py also leaves its Unix socket open when nobody listens on it, so that is tried here first.
    """
    import docker

    address = docker.utils.parse_host(os.environ.get("DOCKER_HOST"))
    if address.startswith(DOCKER_SOCKET):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(DOCKER_TIMEOUT_SECONDS)
            probe.connect("/" + address.removeprefix(DOCKER_SOCKET).lstrip("/"))
    unasked = docker.constants.DEFAULT_DOCKER_API_VERSION
    with closing(docker.from_env(version=unasked, timeout=DOCKER_TIMEOUT_SECONDS)) as client:
        version: str = client.version(api_version=False)["ApiVersion"]
    return version


@contextmanager
def serve_image(
    image: str, settings: dict[str, str], command: tuple[str, ...] = (), files: dict[str, bytes] | None = None
) -> Iterator[ContainerServer]:
    """Run a server from an image; `files` are put into the container before it starts, `command` starts it."""
    from testcontainers.community.postgres import PostgresContainer

    secret = secrets.token_urlsafe(18)
    container = (
        PostgresContainer(image, port=PORT, username=SUPERUSER, password=secret, dbname=SUPERUSER, driver=None)
        .with_env("POSTGRES_INITDB_ARGS", INITDB_ARGUMENTS)
        .with_command([*command, "postgres", *(part for item in settings.items() for part in ("-c", "=".join(item)))])
        .with_kwargs(shm_size=SHARED_MEMORY)
    )
    for path, content in (files or {}).items():
        container.with_copy_into_container(content, path)
    with container:
        host = container.get_container_host_ip()
        yield ContainerServer(
            host=servers.HOST if host == "localhost" else host,  # which may be another port's, by IPv6
            port=container.get_exposed_port(PORT),
            secret=secret,
        )
