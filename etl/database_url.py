"""Reads and builds database URLs. No repr and no error message contains any part of a password.

Begin at `read_url`. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, urlencode

import psycopg2
import psycopg2.extensions

from etl.errors import ConfigurationError

EXPECTED = (
    "expected postgresql://user:password@host:5432/database, with special characters in the password percent-encoded"
)
# The TLS parameters of a URL, and the variable that libpq reads when the URL lacks one.
TLS_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
# Parameters that other programs add to URLs, and what to do about them.
REMOVE_IT = "remove it"
NAME_THE_SCHEMA = "name the schema in tables.yml, with `schema:`"
ENCRYPT = "use sslmode=verify-full"
FOREIGN_PARAMETERS = {
    "charset": REMOVE_IT,
    "connection_limit": REMOVE_IT,
    "currentSchema": NAME_THE_SCHEMA,
    "cursor": REMOVE_IT,
    "driver": REMOVE_IT,
    "pgbouncer": REMOVE_IT,
    "pool_timeout": REMOVE_IT,
    "prepareThreshold": REMOVE_IT,
    "schema": NAME_THE_SCHEMA,
    "search_path": NAME_THE_SCHEMA,
    "socket_timeout": REMOVE_IT,
    "ssl": ENCRYPT,
    "sslaccept": ENCRYPT,
    "statement_cache_size": REMOVE_IT,
}
URI = re.compile(r"postgres(?:ql)?://(?P<place>[^?]*)")


class DatabaseUrl(str):
    """A libpq URL whose repr shows only the address."""

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.address!r})"

    @property
    def address(self) -> str:
        """Host, port and database name, for messages."""
        parts = psycopg2.extensions.parse_dsn(str(self))
        return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}/{parts.get('dbname', '')}"


def make_url(parts: Mapping[str, object]) -> DatabaseUrl:
    """Build a database URL from its parts, under libpq's names; empty parts are left out.

    Parts other than user, password, host, port and dbname become parameters, such as sslmode.
    """
    given = {name: str(value) for name, value in parts.items() if value not in (None, "")}
    place = {name: given.pop(name, "") for name in ("user", "password", "host", "port", "dbname")}
    login = quote(place["user"], safe="") + (f":{quote(place['password'], safe='')}" if place["password"] else "")
    host = f"[{place['host']}]" if ":" in place["host"] else quote(place["host"], safe="")
    return DatabaseUrl(
        f"postgresql://{login}{'@' if login else ''}{host}{':' if place['port'] else ''}{place['port']}"
        f"/{quote(place['dbname'], safe='')}{'?' if given else ''}{urlencode(given, quote_via=quote)}"
    )


def read_url(text: str, name: str) -> dict[str, str]:
    """Return the parts of a URL, under libpq's names; `name` is the variable that holds the URL.

    Raises ConfigurationError when libpq cannot parse the URL, as with parameters of other programs, or when a password
    that is not percent-encoded has shifted the parts: the rest of it would be shown as a host, a port or a database.
    """
    try:
        parts: dict[str, str] = psycopg2.extensions.parse_dsn(text)
    except psycopg2.ProgrammingError:  # not chained: its text may quote part of the password
        parts = {"port": "none"}
    ports = [port for port in parts.get("port", "").split(",") if port]
    if not all(port.isdecimal() for port in ports) or _has_moved_parts(text, parts):
        _reject_foreign_parameters(text, name)
        raise ConfigurationError(f"{name} is not a libpq URL: {EXPECTED}")
    return parts


def _reject_foreign_parameters(text: str, name: str) -> None:
    """Raise ConfigurationError when a URL has parameters of other programs; only known names are shown."""
    given = {part.partition("=")[0] for part in text.partition("?")[2].split("&")}
    found = [
        f"{parameter} ({FOREIGN_PARAMETERS[parameter]})" for parameter in sorted(given & FOREIGN_PARAMETERS.keys())
    ]
    if found:
        raise ConfigurationError(f"{name} has parameters that libpq does not know: {', '.join(found)}")


def _has_moved_parts(text: str, parts: dict[str, str]) -> bool:
    """Return whether another @ follows the one that ends the password; a socket's name may begin with an @."""
    uri = URI.match(text)
    path = uri["place"].partition("/")[2] if uri else ""
    return bool(uri) and ("@" in path or "@" in parts.get("host", "")[1:])
