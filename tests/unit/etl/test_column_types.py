"""Which type a source column has in `raw`."""

import pytest

from etl.column_types import RawType, SourceType, map_type


def source_type(oid, name, kind="b", element=0, base=0, base_name="", has_binary=True):
    return SourceType(
        oid=oid,
        name=name,
        kind=kind,
        is_array=element != 0,
        element_oid=element,
        base_oid=base,
        base_name=base_name,
        has_binary=has_binary,
    )


TYPES = {
    found.oid: found
    for found in [
        source_type(23, "integer"),
        source_type(1007, "integer[]", element=23),
        source_type(1700, "numeric"),
        source_type(142, "xml"),
        source_type(2205, "regclass"),
        source_type(1033, "aclitem", has_binary=False),
        source_type(20001, "public.mood", "e"),
        source_type(20002, "public.mood[]", element=20001),
        source_type(20003, "public.amount", "d", base=1700, base_name="numeric(12,2)"),
        source_type(20004, "public.amount[]", element=20003),
        source_type(20005, "public.address", "c"),
        source_type(20006, "public.address[]", element=20005),
        source_type(20007, "public.vector"),
        source_type(20008, "public.strange"),
        source_type(20009, "public.vector[]", element=20007),
        source_type(20010, "public.floatrange", "r"),
        source_type(20011, "public.big_amount", "d", base=20003, base_name="public.amount"),
    ]
}
KNOWN = {"integer", "integer[]", "numeric", "xml", "regclass", "aclitem", "public.vector", "public.vector[]"}


@pytest.mark.parametrize(
    ("oid", "formatted", "expected"),
    [
        (23, "integer", ("integer", False, True)),
        (1007, "integer[]", ("integer[]", False, True)),
        (1700, "numeric(5,1)", ("numeric(5,1)", False, True)),
        (142, "xml", ("xml", False, False)),
        (2205, "regclass", ("text", True, True)),
        (1033, "aclitem", ("aclitem", False, False)),
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
        (20011, "public.big_amount", ("numeric(12,2)", True, True)),
    ],
)
def test_a_type_maps_to_what_the_target_can_hold(oid, formatted, expected):
    name, is_cast, is_binary = expected

    assert map_type(oid, formatted, TYPES, KNOWN) == RawType(name=name, is_cast=is_cast, is_binary=is_binary)
