"""Decides which type a source column has in `raw`, and whether its binary form can be copied. Pure.

Enums become text, domains their base type, and a type that the target lacks becomes text.
Begin at `map_type`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

# The first oid that initdb does not assign (FirstNormalObjectId): types below are the same on every server.
FIRST_USER_OID = 16384
TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class SourceType:
    """One row of pg_type on the source, with what it refers to."""

    oid: int
    name: str  # as format_type() writes it without modifier, schema-qualified
    kind: str  # typtype: b base, c composite, d domain, e enum, r range, m multirange
    is_array: bool
    element_oid: int  # of an array, else 0
    base_oid: int  # of a domain, else 0
    base_name: str  # of a domain: its base type with the modifier that the domain states
    has_binary: bool


@dataclass(frozen=True, kw_only=True)
class RawType:
    """The type of a column in `raw`."""

    name: str
    is_cast: bool
    is_binary: bool


def map_type(oid: int, formatted: str, types: Mapping[int, SourceType], known_to_target: Set[str]) -> RawType:
    """Return the raw type of a column.

    `formatted` is the column's type with its modifier; `known_to_target` holds the names of the target's types,
    without modifier, written as format_type() does.
    """
    found = types[oid]
    if found.kind == "d":
        base = map_type(found.base_oid, found.base_name, types, known_to_target)
        return RawType(name=base.name, is_cast=True, is_binary=base.is_binary)
    if found.is_array and found.element_oid >= FIRST_USER_OID:
        return _map_array(found, formatted, types, known_to_target)
    if found.kind in "ec" or found.name not in known_to_target or _names_an_object(found):
        return RawType(name=TEXT, is_cast=True, is_binary=True)
    is_builtin = found.oid < FIRST_USER_OID
    return RawType(
        name=formatted, is_cast=False, is_binary=is_builtin and found.has_binary and not found.name.startswith("xml")
    )


def _map_array(
    found: SourceType, formatted: str, types: Mapping[int, SourceType], known_to_target: Set[str]
) -> RawType:
    element = types[found.element_oid]
    mapped = map_type(found.element_oid, element.name, types, known_to_target)
    if not mapped.is_cast:
        return RawType(name=formatted, is_cast=False, is_binary=False)
    return RawType(name=f"{mapped.name}[]", is_cast=True, is_binary=mapped.is_binary)


def _names_an_object(found: SourceType) -> bool:
    """Tell whether values are oids of catalog objects, which mean others on another server."""
    return found.oid < FIRST_USER_OID and found.name.removesuffix("[]").startswith("reg")
