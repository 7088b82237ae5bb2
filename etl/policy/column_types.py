"""Decides which type a source column has in `raw`, and whether its binary form can be copied. Pure.

Enums become text, domains their base type, and a type that the target lacks becomes text.
Begin at `map_type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from etl.model import QualifiedName
from etl.type_names import require_type

# The first oid that initdb does not assign (FirstNormalObjectId): types with smaller oids are the same on every server.
FIRST_USER_OID = 16384
TEXT = "text"
MODIFIER = re.compile(r"\([\d,-]+\)")
# Values of these types, and of the reg* types, refer to objects of one server, or no input function accepts them.
BOUND_TO_A_SERVER = frozenset(
    {
        "aclitem",
        "gtsvector",
        "pg_brin_bloom_summary",
        "pg_brin_minmax_multi_summary",
        "pg_dependencies",
        "pg_mcv_list",
        "pg_ndistinct",
        "pg_node_tree",
    }
)
# Servers before this version read the binary form of an infinite interval as 178,956,970 years, and refuse its text.
# Newer servers read exactly that interval from an older server as infinite, in both forms.
INFINITE_INTERVALS_SINCE = 17
# Servers refuse the binary form of some valid values of these types: of empty ones, or of ones that contain a NULL.
READ_AS_TEXT_ONLY = frozenset({"int2vector", "oidvector", "tsquery"})


@dataclass(frozen=True, kw_only=True)
class SourceType:
    """One row of pg_type on the source, with the types that it refers to."""

    oid: int
    name: str  # as format_type() writes it without modifier, schema-qualified
    kind: str  # typtype: b base, c composite, d domain, e enum, r range, m multirange
    is_array: bool
    element_oid: int  # of an array, else 0
    base_oid: int  # of a domain, else 0
    base_name: str  # of a domain: its base type with the modifier that the domain states
    has_binary: bool
    is_extension: bool  # part of an extension, so the same name means the same type on another server
    has_own_cast: bool  # a user defined its cast to text


@dataclass(frozen=True, kw_only=True)
class TargetTypes:
    """The types that the target can hold."""

    names: Set[str]  # built-in or part of an extension, as format_type() writes them
    major: int  # version of the server
    unfit_for_keys: Set[str] = frozenset()  # types without a default operator class whose `=` can be joined on
    equalities: Mapping[str, QualifiedName] = field(default_factory=dict)  # by type, where it is not pg_catalog's


@dataclass(frozen=True, kw_only=True)
class RawType:
    """The type of a column in `raw`."""

    name: str
    is_cast: bool
    is_binary: bool
    remark: str = ""  # why it became text, if users should know
    has_own_cast: bool = False  # a plain cast to text would not return the value's text
    equality: QualifiedName | None = None  # the operator that compares keys; None: the `=` of pg_catalog


def map_type(oid: int, formatted: str, types: Mapping[int, SourceType], target: TargetTypes) -> RawType:
    """Return the raw type of a column; `formatted` is its type with its modifier, as format_type() writes it.

    Raises TableError when that is not the name of this type.
    """
    found = types[oid]
    require_type(formatted, found.name)
    if found.kind == "d":
        return replace(map_type(found.base_oid, found.base_name, types, target), is_cast=True)
    if found.is_array:
        element = types[found.element_oid]
        if element.oid >= FIRST_USER_OID or element.kind in "cd" or _is_bound(element):
            return _map_array(found, element, formatted, types, target)
    remark = _why_text(found, target)
    if remark is not None:
        return RawType(name=TEXT, is_cast=True, is_binary=True, remark=remark, has_own_cast=found.has_own_cast)
    is_binary = found.oid < FIRST_USER_OID and found.has_binary and _is_same(found, target)
    return RawType(name=formatted, is_cast=False, is_binary=is_binary, has_own_cast=found.has_own_cast)


def map_key_type(oid: int, formatted: str, types: Mapping[int, SourceType], target: TargetTypes) -> RawType:
    """Return the raw type of a key column: text, if the target cannot compare values of the type."""
    raw = map_type(oid, formatted, types, target)
    name = MODIFIER.sub("", raw.name)
    if name.removesuffix("[]") not in target.unfit_for_keys:
        return replace(raw, equality=target.equalities.get(name))
    remark = f"the target cannot compare values of {name}, and the column is part of the key"
    return RawType(name=TEXT, is_cast=True, is_binary=True, remark=remark, has_own_cast=raw.has_own_cast)


def _map_array(
    found: SourceType, element: SourceType, formatted: str, types: Mapping[int, SourceType], target: TargetTypes
) -> RawType:
    mapped = map_type(element.oid, element.name, types, target)
    has_own_cast = found.has_own_cast or mapped.has_own_cast
    if mapped.name.endswith("[]"):  # an array of arrays would be one array with more dimensions
        remark = "arrays of domains over arrays become text"
        return RawType(name=TEXT, is_cast=True, is_binary=True, remark=remark, has_own_cast=has_own_cast)
    if not mapped.is_cast:
        return RawType(name=formatted, is_cast=False, is_binary=False, has_own_cast=has_own_cast)
    return replace(mapped, name=f"{mapped.name}[]", has_own_cast=has_own_cast)


def _why_text(found: SourceType, target: TargetTypes) -> str | None:
    """Return why a type becomes text, or None if it does not; an empty string for enums, which need no explanation."""
    if found.kind == "e":
        return ""
    if found.kind == "c":
        return "composite types become text"
    if _is_bound(found):
        return "its values refer to objects of one server"
    if found.oid >= FIRST_USER_OID and not found.is_extension:
        return f"{found.name} is a user-defined type of the source"
    return None if found.name in target.names else f"the target has no type {found.name}"


def _is_bound(found: SourceType) -> bool:
    return found.oid < FIRST_USER_OID and (found.name in BOUND_TO_A_SERVER or found.name.startswith("reg"))


def _is_same(found: SourceType, target: TargetTypes) -> bool:
    """Return whether both servers read the binary form in the same way; that of xml depends on its encoding."""
    element = found.name.removesuffix("[]")
    if element == "interval":
        return target.major >= INFINITE_INTERVALS_SINCE
    return element != "xml" and element not in READ_AS_TEXT_ONLY
