"""Provisions the servers that the containers use, with passwords from files. Begin at `provision_given`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.containers.entrypoint import read_secret
from deploy.local.provision import METADATA_NAME, SOURCE_ROLES, TARGET_ROLES, make_metadata, make_source, make_target
from etl.database_url import make_url, read_url
from etl.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class GivenServer:
    """A server and the URL of its superuser; the password is in the URL or in libpq's password file."""

    admin_url: str

    @property
    def host(self) -> str:
        return read_url(self.admin_url, "admin_url").get("host", "")

    def url(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """Return the URL with another database, and with another role if one is given."""
        parts = read_url(self.admin_url, "admin_url") | {"dbname": database}
        if user is not None:
            parts = {name: value for name, value in parts.items() if name != "password"}
            parts |= {"user": user, "password": password or ""}
        return make_url(parts)


def provision_given(environment: Mapping[str, str], secrets: Path) -> list[str]:
    """Create what the pipeline needs on each server whose superuser's URL is in a variable; return a line for each.

    A role's password is in the file HOST.ROLE of the folder. Raises ConfigurationError if one is missing, before
    anything is created.
    """
    makers = {
        "SOURCE_ADMIN_DATABASE_URL": (make_source, SOURCE_ROLES),
        "TARGET_ADMIN_DATABASE_URL": (make_target, TARGET_ROLES),
        "METADATA_ADMIN_DATABASE_URL": (make_metadata, (METADATA_NAME,)),
    }
    found = {name: GivenServer(admin_url=environment[name]) for name in makers if environment.get(name)}
    if not found:
        raise ConfigurationError(f"expected a superuser's URL in {', '.join(makers)}, found none: set at least one")
    passwords = {name: read_passwords(secrets, server.host, makers[name][1]) for name, server in found.items()}
    for name, server in found.items():
        makers[name][0](server, passwords[name])
    return [f"{server.host}: {', '.join(passwords[name])}" for name, server in found.items()]


def read_passwords(secrets: Path, host: str, roles: tuple[str, ...]) -> dict[str, str]:
    """Return the roles' passwords from their files. Raises ConfigurationError that names the missing files."""
    missing = [f"{host}.{role}" for role in roles if not (secrets / f"{host}.{role}").is_file()]
    if missing:
        raise ConfigurationError(f"{secrets} lacks {', '.join(missing)}: create the files with `make secrets`")
    return {role: read_secret(secrets / f"{host}.{role}") for role in roles}
