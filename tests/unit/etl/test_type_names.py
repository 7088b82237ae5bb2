"""Only the name of a type, as format_type() writes it, is taken from a source's catalog."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import TableError
from etl.model import Column
from etl.type_names import check_type_name, is_of_type

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
NAMES = {
    "integer": "integer",
    "numeric(12,2)": "numeric",
    "numeric(2,-3)[]": "numeric[]",
    "bit(3)": "bit",
    '"bit"': "bit",
    '"bit"[]': "bit[]",
    "bit varying(5)": "bit varying",
    "bpchar": "character",
    "character(7)[]": "character[]",
    "character varying": "character varying",
    "double precision[]": "double precision[]",
    '"char"': '"char"',
    "time(3) without time zone": "time without time zone",
    "timestamp(0) with time zone[]": "timestamp with time zone[]",
    "timestamp without time zone": "timestamp without time zone",
    "interval": "interval",
    "interval(3)": "interval",
    "interval year to month": "interval",
    "interval day to second(3)[]": "interval[]",
    "public.geometry(PointZM,4326)": "public.geometry",
    '"my ""schema"""."a; drop table t; --"[]': '"my ""schema"""."a; drop table t; --"[]',
    '"a\nb".c': '"a\nb".c',
    "app.citext": "app.citext",
}
FORGED = [
    "text); drop table canary; --",
    "text, canary int default 1",
    "text default (select 1)",
    "text collate app.mine",
    "integer[][]",
    "integer[3]",
    "numeric(1;2)",
    "numeric((1))",
    "numeric(1) default 2",
    "setof text",
    "app.t%type",
    "app.db.t",
    "Text",
    "a b",
    '"a"b"',
    '"a',
    "timestamp with time zone with time zone",
    "time zone",
    "interval month to year",
    "interval; select 1",
    "",
    " text",
    "text\n",
    "text/**/",
    "text--",
    "U&'x'",
    "$$a$$",
]


@pytest.mark.parametrize("formatted", NAMES)
def test_names_as_the_server_writes_them_are_taken(formatted):
    check_type_name(formatted)

    assert is_of_type(formatted, NAMES[formatted])
    assert not is_of_type(formatted, "text")


@pytest.mark.parametrize("text", FORGED)
def test_any_other_text_is_refused(text):
    with pytest.raises(TableError, match="expected the name of a type"):
        check_type_name(text)
    assert not is_of_type(text, text)


@pytest.mark.parametrize("text", ["text); drop table t; --", "text, a int"])
@pytest.mark.parametrize("place", ["source_type", "raw_type"])
def test_no_column_has_any_other_type(text, place):
    types = {"source_type": "text", "raw_type": "text"} | {place: text}

    with pytest.raises(TableError):
        Column(name="a", number=1, is_nullable=True, is_cast=False, is_binary=True, **types)


@given(ANY, ANY, st.sampled_from(["", "[]"]))
def test_quoted_names_of_any_type_are_taken(schema, name, brackets):
    quoted = ".".join('"{}"'.format(part.replace('"', '""')) for part in (schema, name)) + brackets

    check_type_name(quoted)
    assert is_of_type(quoted, quoted)


@given(st.lists(st.sampled_from(['"', "a", ".", "(", ")", "1", ",", ";", " ", "[", "]", "-", "'", "int", "with"])))
def test_quotes_and_brackets_are_closed_in_what_is_taken(parts):
    """Outside of quotes, what is taken has nothing that ends a type."""
    text = "".join(parts)
    try:
        check_type_name(text)
    except TableError:
        return
    outside = "".join(text.split('"')[::2])
    assert text.count('"') % 2 == 0
    assert not set(";'") & set(outside)
    assert "--" not in outside
    assert outside.count("(") == outside.count(")") <= 1
    assert "," not in outside or outside.index("(") < outside.index(",") < outside.index(")")
