"""Chooses the databases to use: those given by URL, or embedded ones that it provisions on this machine.

Begin at `open_databases`. Nothing here creates, provisions or writes to a database given by URL.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local import provision
from deploy.local.provision import METADATA_NAME, SOURCE_NAME, TARGET_NAME
from deploy.local.servers import Server, choose_home
from etl.errors import ConfigurationError

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_PORTS = {"SOURCE_PORT": 5433, "TARGET_PORT": 5434, "AIRFLOW_PORT": 8080}


@dataclass(frozen=True, kw_only=True)
class Databases:
    """The URLs that commands use, as environment variables, and whether each side is embedded."""

    urls: Mapping[str, str]
    is_source_embedded: bool
    is_target_embedded: bool

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.urls}


def embedded_servers(environment: Mapping[str, str] = os.environ) -> tuple[Server, Server]:
    """Return the source and target servers of this checkout, running or not."""
    home = choose_home(CHECKOUT)
    return _server("source", 16, home, environment), _server("target", 18, home, environment)


def open_databases(environment: Mapping[str, str] = os.environ) -> Databases:
    """Start and provision the embedded servers that are needed; return the URLs to use."""
    source, target = embedded_servers(environment)
    urls: dict[str, str] = {}
    is_source_embedded = not environment.get("SOURCE_DATABASE_URL")
    is_target_embedded = not environment.get("TARGET_DATABASE_URL")
    if is_source_embedded:
        source.start()
        urls |= provision_source(source)
    else:
        urls["SOURCE_DATABASE_URL"] = environment["SOURCE_DATABASE_URL"]
    if is_target_embedded:
        target.start()
        urls |= provision_target(target)
    else:
        urls["TARGET_DATABASE_URL"] = environment["TARGET_DATABASE_URL"]
    return Databases(urls=urls, is_source_embedded=is_source_embedded, is_target_embedded=is_target_embedded)


def provision_source(server: Server) -> dict[str, str]:
    """Create the database, the schema and the replicator if they are missing; return the URLs."""
    passwords = _passwords(server, provision.SOURCE_ROLES)
    provision.make_source(server, passwords)
    return {
        "SOURCE_ADMIN_DATABASE_URL": server.url(SOURCE_NAME),
        "SOURCE_DATABASE_URL": server.url(SOURCE_NAME, "replicator", passwords["replicator"]),
    }


def provision_target(server: Server) -> dict[str, str]:
    """Create the database, its schemas and its roles if they are missing; return the URLs."""
    passwords = _passwords(server, provision.TARGET_ROLES)
    provision.make_target(server, passwords)
    urls = {role: server.url(TARGET_NAME, role, passwords[role]) for role in provision.TARGET_ROLES}
    return {
        "TARGET_DATABASE_URL": urls["loader"],
        "TRANSFORMER_DATABASE_URL": urls["transformer"],
        "ANALYST_DATABASE_URL": urls["analyst"],
    }


def provision_metadata(server: Server) -> str:
    """Create a database for Airflow's metadata and the role that owns it if they are missing; return the URL."""
    passwords = _passwords(server, (METADATA_NAME,), "airflow.json")
    provision.make_metadata(server, passwords)
    return server.url(METADATA_NAME, METADATA_NAME, passwords[METADATA_NAME])


def _passwords(server: Server, roles: tuple[str, ...], name: str = "passwords.json") -> dict[str, str]:
    """Return the roles' passwords, generated once and kept next to the data in a file that only its owner can read."""
    path = server.folder / name
    if path.exists():
        found: dict[str, str] = json.loads(path.read_text())
        return found
    made = {role: secrets.token_urlsafe(18) for role in roles}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(made, file)
    return made


def _server(name: str, major: int, home: Path, environment: Mapping[str, str]) -> Server:
    variable = f"{name.upper()}_PORT"
    port = read_port(environment, variable)
    return Server(name=name, folder=home / name, port=port, major=major, port_variable=variable)


def read_port(environment: Mapping[str, str], name: str) -> int:
    """Return the port in an environment variable, or its default. Raises ConfigurationError if it is not a port."""
    text = environment.get(name) or str(DEFAULT_PORTS[name])
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigurationError(f"{name} is {text!r}: expected a port, 1 to 65535")
    return int(text)
