"""Reads URLs of databases. What is told of one, or of what is wrong with it, holds no part of a password.

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
# What a URL may say about TLS, and the variable that libpq takes it from where it does not.
TLS_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
URI = re.compile(r"postgres(?:ql)?://(?P<place>[^?]*)")


class DatabaseUrl(str):
    """A libpq URL whose repr hides everything but the address."""

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.address!r})"

    @property
    def address(self) -> str:
        """Host, port and database name, for messages."""
        parts = psycopg2.extensions.parse_dsn(str(self))
        return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}/{parts.get('dbname', '')}"


def make_url(parts: Mapping[str, object]) -> DatabaseUrl:
    """Return the URL of a database from its parts by libpq's names; parts that are empty are left out.

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
    """Return the parts of a URL by libpq's names; `name` is that of the variable that holds it.

    Raises ConfigurationError for what libpq does not read, and where a password that is not percent-encoded has moved
    the parts: the rest of it would be told as a host, a port or a database.
    """
    try:
        parts: dict[str, str] = psycopg2.extensions.parse_dsn(text)
    except psycopg2.ProgrammingError:  # its text may quote a part of the password, so it is no cause of ours
        parts = {"port": "none"}
    ports = [port for port in parts.get("port", "").split(",") if port]
    if not all(port.isdecimal() for port in ports) or _has_moved_parts(text, parts):
        raise ConfigurationError(f"{name} is not a libpq URL: {EXPECTED}")
    return parts


def _has_moved_parts(text: str, parts: dict[str, str]) -> bool:
    """Tell whether an @ is left after the one that ends the password; a socket's name may begin with one."""
    uri = URI.match(text)
    path = uri["place"].partition("/")[2] if uri else ""
    return bool(uri) and ("@" in path or "@" in parts.get("host", "")[1:])
