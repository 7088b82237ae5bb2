"""Reads the names of types that a source writes, so that nothing but the name of a type reaches a statement.

The grammar is that of format_type() ("System Catalog Information Functions" in the manual). Begin at `check_type_name`.
"""

from __future__ import annotations

import re

from etl.errors import TableError

IDENTIFIER = r'(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")'
PRECISION = r"\([0-9]+\)"
FIELDS = "year|month|day|hour|minute|second|year to month|day to (?:hour|minute|second)|(?:hour|minute) to second"
FIELDS += "|hour to minute"
ARGUMENT = "(?:-?[0-9]+|[A-Za-z][A-Za-z0-9_]*)"  # of a modifier, such as (12,2) or (Point,4326)
TYPE_NAME = re.compile(
    rf"(?:(?P<time>time|timestamp)(?:{PRECISION})?(?P<zone> with(?:out)? time zone)"
    rf"|(?P<interval>interval)(?: (?:{FIELDS}))?(?:{PRECISION})?"
    rf"|(?P<other>(?:bit|character) varying|double precision|{IDENTIFIER}(?:\.{IDENTIFIER})?)"
    rf"(?P<modifier>\({ARGUMENT}(?:, ?{ARGUMENT})*\))?)"
    r"(?P<brackets>\[\])?"
)
# How format_type() writes these types for a column without a length, and how it writes them without a column.
WITHOUT_LENGTH = {"bpchar": "character", '"bit"': "bit"}


def check_type_name(text: str) -> None:
    """Raise TableError when a text is anything but the name of a type, as format_type() writes it."""
    if TYPE_NAME.fullmatch(text) is None:
        raise _refusal(text)


def is_of_type(formatted: str, name: str) -> bool:
    """Return whether the type of a column, written with its modifier, is the type of this name."""
    found = TYPE_NAME.fullmatch(formatted)
    if found is None:
        return False
    base = found["other"] or (found["interval"] or found["time"]) + (found["zone"] or "")
    if not found["modifier"]:
        base = WITHOUT_LENGTH.get(base, base)
    return base + (found["brackets"] or "") == name


def require_type(formatted: str, name: str) -> None:
    """Raise TableError when the type of a column, written with its modifier, is not the type of this name."""
    if not is_of_type(formatted, name):
        raise _refusal(formatted)


def _refusal(text: str) -> TableError:
    return TableError(
        f"expected the name of a type from the source's catalog, found {text!r}: nothing of it was executed; find out "
        "who changed format_type() on the source, or skip the table"
    )
