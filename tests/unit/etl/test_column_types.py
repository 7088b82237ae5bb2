"""Which type a source column has in `raw`."""

import pytest

from etl.model import QualifiedName
from etl.policy.column_types import SourceType, TargetTypes, map_key_type, map_type


def source_type(oid, name, kind="b", element=0, base=0, base_name="", has_binary=True, is_extension=False):
    return SourceType(
        oid=oid,
        name=name,
        kind=kind,
        is_array=element != 0,
        element_oid=element,
        base_oid=base,
        base_name=base_name,
        has_binary=has_binary,
        is_extension=is_extension,
        has_own_cast=False,
    )


TYPES = {
    found.oid: found
    for found in [
        source_type(23, "integer"),
        source_type(1007, "integer[]", element=23),
        source_type(1700, "numeric"),
        source_type(142, "xml"),
        source_type(2205, "regclass"),
        source_type(2210, "regclass[]", element=2205),
        source_type(1033, "aclitem", has_binary=False),
        source_type(1186, "interval"),
        source_type(20012, "public.own"),
        source_type(20001, "public.mood", "e"),
        source_type(20002, "public.mood[]", element=20001),
        source_type(20003, "public.amount", "d", base=1700, base_name="numeric(12,2)"),
        source_type(20004, "public.amount[]", element=20003),
        source_type(20005, "public.address", "c"),
        source_type(20006, "public.address[]", element=20005),
        source_type(20007, "public.vector", is_extension=True),
        source_type(20008, "public.strange", is_extension=True),
        source_type(20009, "public.vector[]", element=20007),
        source_type(20010, "public.floatrange", "r"),
        source_type(20013, "public.numbers", "d", base=1007, base_name="integer[]"),
        source_type(20014, "public.numbers[]", element=20013),
        source_type(3615, "tsquery"),
        source_type(75, "pg_class", "c"),
        source_type(273, "pg_class[]", element=75),
        source_type(20011, "public.big_amount", "d", base=20003, base_name="public.amount"),
    ]
}
BUILT_IN = {found.name for found in TYPES.values() if found.oid < 16384}
KNOWN = TargetTypes(names=BUILT_IN | {"public.vector", "public.own"}, major=18)


@pytest.mark.parametrize(
    ("oid", "formatted", "expected"),
    [
        (23, "integer", ("integer", False, True)),
        (1007, "integer[]", ("integer[]", False, True)),
        (1700, "numeric(5,1)", ("numeric(5,1)", False, True)),
        (142, "xml", ("xml", False, False)),
        (2205, "regclass", ("text", True, True)),
        (1033, "aclitem", ("text", True, True)),
        (2210, "regclass[]", ("text[]", True, True)),
        (1186, "interval", ("interval", False, True)),
        (20012, "public.own", ("text", True, True)),
        (20001, "public.mood", ("text", True, True)),
        (20002, "public.mood[]", ("text[]", True, True)),
        (20003, "public.amount", ("numeric(12,2)", True, True)),
        (20004, "public.amount[]", ("numeric(12,2)[]", True, True)),
        (20005, "public.address", ("text", True, True)),
        (20006, "public.address[]", ("text[]", True, True)),
        (20007, "public.vector(3)", ("public.vector(3)", False, False)),
        (20008, "public.strange", ("text", True, True)),
        (20009, "public.vector[]", ("public.vector[]", False, False)),
        (20010, "public.floatrange", ("text", True, True)),
        (20013, "public.numbers", ("integer[]", True, True)),
        (20014, "public.numbers[]", ("text", True, True)),
        (3615, "tsquery", ("tsquery", False, False)),
        (273, "pg_class[]", ("text[]", True, True)),
        (20011, "public.big_amount", ("numeric(12,2)", True, True)),
    ],
)
def test_a_type_maps_to_what_the_target_can_hold(oid, formatted, expected):
    found = map_type(oid, formatted, TYPES, KNOWN)

    assert (found.name, found.is_cast, found.is_binary) == expected


def test_infinite_interval_is_sent_as_text_to_older_servers():
    """PostgreSQL 16 takes the binary form for 178,956,970 years."""
    older = TargetTypes(names=BUILT_IN, major=16)

    assert not map_type(1186, "interval", TYPES, older).is_binary


@pytest.mark.parametrize(
    ("oid", "expected"),
    [
        (20001, ""),
        (20005, "composite types become text"),
        (20008, "the target has no type public.strange"),
        (20010, "public.floatrange is a user-defined type of the source"),
        (2205, "its values refer to objects of one server"),
        (23, ""),
    ],
)
def test_a_type_that_becomes_text_says_why(oid, expected):
    assert map_type(oid, TYPES[oid].name, TYPES, KNOWN).remark == expected


@pytest.mark.parametrize(
    ("oid", "formatted", "expected"),
    [
        (20007, "public.vector(3)", "text"),
        (20009, "public.vector[]", "text"),
        (142, "xml", "text"),
        (1700, "numeric(5,1)", "numeric(5,1)"),
    ],
)
def test_key_that_the_target_cannot_compare_becomes_text(oid, formatted, expected):
    target = TargetTypes(names=KNOWN.names, major=18, unfit_for_keys={"public.vector", "xml"})
    found = map_key_type(oid, formatted, TYPES, target)

    assert found.name == expected
    assert ("cannot compare" in found.remark) == (expected == "text")


def test_key_is_compared_in_raw_by_the_operator_of_its_type():
    equality = QualifiedName(schema="public", name="=")
    target = TargetTypes(names=KNOWN.names, major=18, equalities={"public.vector": equality})

    assert map_key_type(20007, "public.vector(3)", TYPES, target).equality == equality
    assert map_key_type(20009, "public.vector[]", TYPES, target).equality is None  # arrays have operators of their own
    assert map_key_type(20001, "public.mood", TYPES, target).equality is None
