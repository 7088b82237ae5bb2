"""Every value arrives as it was: all built-in types, generated values, and tables of every structure.

Both sides are compared through the types' output functions under the same settings. `row(column)::text` is used
instead of `column::text`, which drops the blanks at the end of a char and cannot tell NULL from nothing.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2 import sql

from etl.model import RunOptions
from etl.source.session import Source
from etl.target.types import read_types
from tests.examples import ON_SERVERS
from tests.results import pick

PINNED = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "quote_all_identifiers": "off",
    "search_path": "",
}
# What a database may set for its sessions and what would bend text on its way; a session has to set its own.
HOSTILE = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "DateStyle": "SQL, DMY",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "IntervalStyle": "iso_8601",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "TimeZone": "Pacific/Apia",
    "transform_null_equals": "on",
    "xmloption": "document",
}
LARGE_BYTES = 50_000_000
WIDE_COLUMNS = 500
_numbers = itertools.count(1)

INTEGERS_2 = ["0", "1", "-1", "32767", "-32768"]
INTEGERS_4 = ["0", "1", "-1", "2147483647", "-2147483648"]
INTEGERS_8 = ["0", "1", "-1", "9223372036854775807", "-9223372036854775808"]
OIDS = ["0", "1", "16384", "2147483648", "4294967295"]
FLOATS = ["0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "-1.5", "0.30000001", "1e10", "123456.78"]
TEXTS = [
    "",
    " ",
    "plain",
    "two  blanks at the end  ",
    "tab\there\vand\fthere",
    "one\ntwo\r\nthree\rfour\n",
    "back\\slash \\t \\n \\x41 \\101 \\",
    "\\N",
    "\\.",
    "\\.\n",
    "NULL",
    "null",
    '{a,"b",NULL}',
    '(1,"x",)',
    "'quoted' \"twice\" ''",
    "%s %% {} {0} $1 :name",
    "é ß ﬁ e\u0301 \u200f\u202e",
    "😀 👩\u200d👩\u200d👧 🇮🇹",
    "\u0001\u001f\u007f\u0085\u2028\ufeff\ufffd\U0010ffff",
    "long " * 5_000,
]
TIMESTAMPS = [
    "epoch",
    "infinity",
    "-infinity",
    "4714-11-24 00:00:00 BC",
    "4713-01-01 00:00:00 BC",
    "0001-12-31 23:59:59.999999 BC",
    "0001-01-01 00:00:00",
    "1582-10-10 12:00:00",
    "1999-12-31 23:59:60",
    "2024-02-29 12:34:56.789012",
    "2038-01-19 03:14:08.000001",
    "294276-12-31 23:59:59.999999",
]
BITS = ["", "0", "1", "101", "1" * 8, "0" * 9, "10" * 500]
SNAPSHOTS = ["1:1:", "10:20:10,14,15", "9223372036854775806:9223372036854775807:9223372036854775806"]
JSONS = [
    "null",
    "true",
    "0",
    "-0",
    "1.00",
    "1e400",
    '""',
    '"\\u00e9 \\ud83d\\ude00 \\\\ \\" \\/ \\b\\f\\n\\r\\t"',
    "[]",
    "{}",
    '{"a": 1, "a": 2, "": null}',
    ' { "b" : [ 1 , 2.50, "x\\ty" ] , "a":{"a":{"a":[[[]]]}} } ',
    '["😀", "é", 123456789012345678901234567890.123456789]',
]
# By the name that format_type() gives a column of the type without modifier.
SAMPLES: dict[str, list[str]] = {
    "boolean": ["true", "false"],
    "smallint": INTEGERS_2,
    "integer": INTEGERS_4,
    "bigint": INTEGERS_8,
    "oid": OIDS,
    "xid": OIDS,
    "cid": OIDS,
    "xid8": ["0", "3", "4294967296", "18446744073709551615"],
    "tid": ["(0,0)", "(0,1)", "(4294967295,65535)"],
    "int2vector": ["", "0", "1 2 3", "32767 -32768"],
    "oidvector": ["", "0", "1 2 3", "4294967295 0"],
    "real": [*FLOATS, "1e-45", "-1e-45", "1.17549435e-38", "3.4028235e38", "-3.4028235e38", "16777217"],
    "double precision": [
        *FLOATS,
        "5e-324",
        "-5e-324",
        "2.2250738585072011e-308",
        "2.2250738585072014e-308",
        "1.7976931348623157e308",
        "-1.7976931348623157e308",
        "0.30000000000000004",
        "9007199254740993",
    ],
    "numeric": [
        "0",
        "0.000",
        "1",
        "1.0",
        "1.00",
        "-1.50",
        "NaN",
        "Infinity",
        "-Infinity",
        "9" * 1000,
        "-" + "9" * 500 + "." + "9" * 500,
        "0." + "0" * 999 + "1",
        "1e131071",
        "1e-16383",
        "10000",
        "0.0001",
        "1e40",
    ],
    "money": ["0", "0.01", "-0.01", "1234.56", "92233720368547758.07", "-92233720368547758.08"],
    "text": TEXTS,
    "character varying": TEXTS,
    "bpchar": TEXTS,
    "name": ["", "plain", " blanks ", "tab\tnew\nline\\", "é" * 31, "x" * 63, "\\N"],
    '"char"': ["", "a", " ", "\t", "\\", "\\001", "\\177", "\\200", "\\377"],
    "refcursor": ["", "cursor", "\\N", "é\t"],
    "bytea": ["\\x", "\\x00", "\\x0000", "\\x" + bytes(range(256)).hex(), "\\x5c4e", "\\x5c2e0a", "\\xff" * 1],
    "date": ["epoch", "infinity", "-infinity", "4714-11-24 BC", "0001-01-01 BC", "2024-02-29", "5874897-12-31"],
    "time without time zone": ["00:00:00", "24:00:00", "23:59:59.999999", "23:59:60", "12:34:56.7"],
    "time with time zone": [
        "00:00:00+00",
        "24:00:00-15:59:59",
        "00:00:00+15:59:59",
        "23:59:59.999999+05:30",
        "12:34:56.7-00:44:30",
    ],
    "timestamp without time zone": TIMESTAMPS,
    "timestamp with time zone": [*TIMESTAMPS, "2024-10-27 02:30:00 Europe/Rome", "2024-01-01 00:00:00+14"],
    "interval": [
        "0",
        "1 mon",
        "30 days",
        "720:00:00",
        "1 year -1 mon +1 day -00:00:00.000001",
        "-1 years -2 mons +3 days",
        "2147483647 days",
        "-2147483648 days",
        "178956970 years 7 mons",
        "-178956970 years -8 mons",
        "2562047788:00:54.775807",
        "-2562047788:00:54.775807",
    ],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "A0EEBC99" + "0" * 24],
    "json": [*JSONS, '"\\u0000"', "[1,\n\t2]"],
    "jsonb": JSONS,
    "jsonpath": [
        "$",
        "$[*]",
        'strict $."a b".c[0 to last] ? (@.x > 1.50 && @ like_regex "^a\\\\d" flag "i")',
        "lax $.**{2 to last}.size() + 1",
        '$.a.datetime("HH24:MI") == $x',
    ],
    '"bit"': BITS,
    "bit varying": BITS,
    "inet": [
        "0.0.0.0",
        "0.0.0.0/0",
        "192.168.1.5/24",
        "255.255.255.255",
        "::",
        "::/0",
        "::ffff:1.2.3.4",
        "2001:db8::1/33",
    ],
    "cidr": ["0.0.0.0/0", "192.168.1.0/24", "10.0.0.1/32", "::/0", "2001:db8::/32", "::1/128"],
    "macaddr": ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "08-00-2b-01-02-03"],
    "macaddr8": ["00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff", "08-00-2b-01-02-03-04-05", "08002b:010203"],
    "point": ["(0,0)", "(-0,-0)", "(NaN,Infinity)", "(-Infinity,5e-324)", "(0.1,1e308)"],
    "lseg": ["[(0,0),(0,0)]", "[(1.5,-2),(NaN,Infinity)]"],
    "line": ["{1,2,3}", "{0,-1,0.1}", "{1,0,-Infinity}"],
    "box": ["(0,0),(0,0)", "(1,2),(-3,4)", "(Infinity,Infinity),(-Infinity,-Infinity)"],
    "path": ["((0,0))", "[(0,0)]", "((0,0),(1,1),(2,0))", "[(0.1,-0),(NaN,1)]"],
    "polygon": ["((0,0))", "((0,0),(1,1),(2,0))", "((-1.5,2),(Infinity,0),(5e-324,1))"],
    "circle": ["<(0,0),0>", "<(1.5,-2),3.25>", "<(NaN,0),Infinity>"],
    "tsvector": ["", "a", "'it''s' 'two words':1A,16383D 'é\\\\😀':2B", "a:1,2,3C b:4 c"],
    "tsquery": ["", "a", "a & b | !c", "'two words' <-> b:*AB <5> !!c", "'it''s':D | 'é\\\\😀'"],
    "pg_lsn": ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"],
    "txid_snapshot": SNAPSHOTS,
    "pg_snapshot": SNAPSHOTS,
    "aclitem": ["postgres=arwdDxt/postgres", "=r*/postgres", "pg_monitor=X*UCTc/postgres"],
    "regproc": ["-", "version", "4294967295"],
    "regprocedure": ["-", "pg_catalog.sum(bigint)", "4294967295"],
    "regoper": ["0", "pg_catalog.||/", "4294967295"],
    "regoperator": ["0", "+(integer,integer)", "-(none,bigint)", "4294967295"],
    "regclass": ["-", "pg_class", "information_schema.tables", "4294967295"],
    "regtype": ["-", "integer", "timestamp with time zone", "text[]", "information_schema.yes_or_no", "4294967295"],
    "regrole": ["-", "postgres", "pg_monitor", "4294967295"],
    "regnamespace": ["-", "pg_catalog", "public", "4294967295"],
    "regconfig": ["-", "english", "4294967295"],
    "regdictionary": ["-", "simple", "4294967295"],
    "regcollation": ["-", '"C"', "4294967295"],
    "int4range": ["empty", "(,)", "[1,10)", "(1,10]", "(,-2147483648]", "[2147483646,2147483647)"],
    "int8range": ["empty", "(,)", "[1,10)", "[-9223372036854775808,9223372036854775807)", "(,0)", "[0,)"],
    "numrange": ["empty", "(,)", "[1.0,1.00]", "(-Infinity,Infinity)", "[NaN,NaN]", "(0.0,1e100]", "[,1)"],
    "daterange": ["empty", "(,)", "[-infinity,infinity]", "[2024-01-01,2024-12-31]", "[4714-11-24 BC,5874897-12-31)"],
    "tsrange": ["empty", "(,)", "(-infinity,infinity]", "[2024-01-01 00:00,2024-01-01 00:00:00.000001)", "[,epoch]"],
    "tstzrange": ["empty", "(,)", "(-infinity,infinity]", "[2024-01-01 00:00+14,2024-01-01 00:00-12)", "[,epoch]"],
    "int4multirange": ["{}", "{(,)}", "{[1,2),[5,9)}", "{(,-1),[0,1),[2147483646,)}"],
    "int8multirange": ["{}", "{(,)}", "{[1,2),[5,9)}", "{[-9223372036854775808,0),[5,9223372036854775807)}"],
    "nummultirange": ["{}", "{(,)}", "{[1.0,1.00],(2,3.50)}", "{(-Infinity,0),[NaN,NaN]}"],
    "datemultirange": ["{}", "{(,)}", "{[2024-01-01,2024-01-31],[infinity,)}"],
    "tsmultirange": ["{}", "{(,)}", "{(-infinity,epoch],[2024-01-01,infinity]}"],
    "tstzmultirange": ["{}", "{(,)}", "{(-infinity,epoch],[2024-01-01 00:00+14,infinity]}"],
}
# Columns can have these types, but no statement makes a value for them; they are copied with NULLs.
WITHOUT_VALUES = {
    "xml": "the embedded servers are built without libxml, so xml has no values there",
    "gtsvector": "its input function refuses; values live in GiST indexes only",
    "pg_brin_bloom_summary": "its input function refuses; values live in BRIN indexes only",
    "pg_brin_minmax_multi_summary": "its input function refuses; values live in BRIN indexes only",
    "pg_node_tree": "its input function refuses; values from catalogs have a test of their own",
    "pg_ndistinct": "its input function refuses; values from catalogs have a test of their own",
    "pg_dependencies": "its input function refuses; values from catalogs have a test of their own",
    "pg_mcv_list": "its input function refuses; values from catalogs have a test of their own",
}
BUILT_IN_TYPES = """
    select pg_catalog.format_type(t.oid, -1)
    from pg_catalog.pg_type as t
    where t.typtype in ('b', 'r', 'm')
        and t.typnamespace = 'pg_catalog'::regnamespace
        and not exists (select from pg_catalog.pg_type as e where e.typarray = t.oid)
    order by 1
"""
SORTED_TYPES = """
    select pg_catalog.format_type(t.oid, -1)
    from pg_catalog.pg_type as t
    where t.typnamespace = 'pg_catalog'::regnamespace
        and exists (
            select from pg_catalog.pg_opclass as o
            join pg_catalog.pg_am as m on m.oid = o.opcmethod
            where m.amname = 'btree' and o.opcdefault
                and o.opcintype in (
                    t.oid,
                    case when t.typname like 'reg%' then 'oid'::regtype end,
                    case when t.typname in ('varchar', 'cidr') then 'text'::regtype end,
                    case t.typtype when 'r' then 'anyrange'::regtype when 'm' then 'anymultirange'::regtype end
                )
        )
    order by 1
"""
COLUMNS = """
    select a.attname from pg_catalog.pg_attribute as a
    where a.attrelid = pg_catalog.format('%%I.%%I', %s::text, %s::text)::regclass
        and a.attnum > 0 and not a.attisdropped
    order by a.attnum
"""


def built_in_types(replication) -> list[str]:
    return [name for (name,) in replication.on_source(BUILT_IN_TYPES)]


def array_samples(kind: str) -> list[sql.Composable]:
    """Return expressions of arrays: long, empty, of NULL, with two and three dimensions, with bounds of their own."""
    values = [sql.SQL("{}::{}").format(sql.Literal(sample), sql.SQL(kind)) for sample in SAMPLES[kind]]
    parts = {"all": sql.SQL(", ").join(values), "a": values[0], "b": values[-1], "t": sql.SQL(kind)}
    shapes = [
        "array[{all}, null]::{t}[]",
        "array[]::{t}[]",
        "array[null, null]::{t}[]",
        "array[[{a}, null], [{b}, {a}]]::{t}[]",
        "array[[[{b}], [{a}]], [[null], [{b}]]]::{t}[]",
        "('[-3:-2]=' || array[{a}, {b}]::{t}[]::text)::{t}[]",
        "('[2:3][0:1]=' || array[[null, {a}], [{b}, {b}]]::{t}[]::text)::{t}[]",
    ]
    return [sql.SQL(shape).format(**parts) for shape in shapes]


@dataclass(frozen=True)
class Samples:
    """The table `samples` on a source: a column for each type and for its arrays, a row for each sample."""

    kinds: list[str]  # the types, which are the columns' names as well
    rows: int
    values: int


def make_samples(replication, kinds: list[str]) -> Samples:
    cells = {kind: [sql.Literal(sample) for sample in SAMPLES[kind]] for kind in kinds}
    cells |= {f"{kind}[]": array_samples(kind) for kind in kinds}
    rows = max(map(len, cells.values())) + 1  # the last row has NULLs only
    definitions = [sql.SQL("{} {}").format(sql.Identifier(kind), sql.SQL(kind)) for kind in cells]
    create = sql.SQL("create table samples (sample_id int primary key, {})")
    replication.on_source(create.format(sql.SQL(", ").join(definitions)))
    for row in range(rows):
        found = [values[row] if row < len(values) else sql.SQL("null") for values in cells.values()]
        insert = sql.SQL("insert into samples values ({}, {})")
        replication.on_source(insert.format(sql.Literal(row), sql.SQL(", ").join(found)))
    return Samples(kinds=list(cells), rows=rows, values=sum(map(len, cells.values())))


def rotate_samples(replication, samples: Samples) -> None:
    """Give each row the values of the next, so that every cell of the merge differs from what `raw` has."""
    names = sql.SQL(", ").join(map(sql.Identifier, samples.kinds))
    replication.on_source(
        sql.SQL(
            "update samples as t set ({names}) ="
            " (select {names} from samples as o where o.sample_id = (t.sample_id + 1) % {rows})"
        ).format(names=names, rows=sql.Literal(samples.rows))
    )


@contextlib.contextmanager
def pinned_session(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url, client_encoding="UTF8")
    with contextlib.closing(connection), connection.cursor() as cursor:
        for name, value in PINNED.items():
            cursor.execute("select set_config(%s, %s, false)", (name, value))
        yield cursor


def read_texts(url: str, schema: str, table: str, names: list[str]) -> list[tuple[str, ...]]:
    """Return the rows of a table, each column as text, sorted."""
    columns = sql.SQL(", ").join(sql.SQL("row({})::text").format(sql.Identifier(name)) for name in names)
    with pinned_session(url) as cursor:
        cursor.execute(sql.SQL("select {} from {}").format(columns, sql.Identifier(schema, table)))
        return sorted(cursor.fetchall())


def differences(replication, table: str, schema: str = "public") -> list[tuple[str, str, str]]:
    """Return column, source's text and raw's text of every value that differs, each shortened."""
    with pinned_session(replication.source_url) as cursor:
        cursor.execute(COLUMNS, (schema, table))
        names = [name for (name,) in cursor]
    source = read_texts(replication.source_url, schema, table, names)
    raw = read_texts(replication.target_url, "raw", table, names)
    assert source, f"{table} has no rows: nothing was compared"
    assert replication.on_target("select message, row_text from etl.rejected_rows") == []
    assert len(source) == len(raw)
    return [
        (name, expected[:200], found[:200])
        for rows in zip(source, raw, strict=True)
        for name, expected, found in zip(names, *rows, strict=True)
        if expected != found
    ]


def assert_exact(replication, table: str, schema: str = "public") -> None:
    replication.run_one(table)

    assert differences(replication, table, schema) == []


def raw_type(replication, table: str, column: str) -> str:
    ((found,),) = replication.on_target(
        "select format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = format('raw.%%I', %s::text)::regclass and attname = %s",
        table,
        column,
    )
    return found


@pytest.fixture(scope="module")
def source_server(embedded_source_server):
    """PostgreSQL 16, with an extension that images lack."""
    return embedded_source_server


@pytest.fixture(scope="module")
def target_server(embedded_target_server):
    """PostgreSQL 18, with the same extension."""
    return embedded_target_server


@pytest.fixture
def downgrade(source_url, target_url, replicate_between):
    """A replication from PostgreSQL 18 to 16, the other way round than `replication`."""
    return replicate_between(target_url, source_url)


@pytest.fixture(params=["replication", "downgrade"])
def either_way(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["binary", "text"])
def samples(request, either_way) -> Samples:
    """A table of samples in either format of COPY: one column that has to go as text decides for all."""
    found = make_samples(either_way, [kind for kind in built_in_types(either_way) if kind in SAMPLES])
    if request.param == "text":
        send_as_text(either_way)
        return found
    as_text = columns_sent_as_text(either_way)
    for name in as_text:
        either_way.on_source(sql.SQL("alter table samples drop column {}").format(sql.Identifier(name)))
    return replace(found, kinds=[kind for kind in found.kinds if kind not in as_text])


def send_as_text(replication) -> None:
    """Add a column that makes the samples go as text: the binary form of an extension's type is its own affair."""
    for side in (replication.on_source, replication.on_target):
        side("create extension vector")
    replication.on_source("alter table samples add column as_text vector")


def columns_sent_as_text(replication) -> list[str]:
    with Source(replication.settings) as source:
        (table,) = source.read_catalog(read_types(replication.target), ["samples"]).tables
    return [column.name for column in table.columns if not column.is_binary]


# Built-in types


def test_every_built_in_type_has_samples_or_a_reason(either_way):
    found = set(built_in_types(either_way))

    assert len(found) > 70
    assert found - set(SAMPLES) - set(WITHOUT_VALUES) == set()
    assert set(SAMPLES) & set(WITHOUT_VALUES) == set()


def test_every_built_in_type_and_its_arrays_arrive_exactly(either_way, samples):
    result = either_way.run_one("samples")

    assert differences(either_way, "samples") == []
    assert result.rows_inserted == samples.rows
    assert samples.values > 5 * len(samples.kinds)


def test_every_built_in_type_and_its_arrays_are_merged_exactly(either_way, samples):
    either_way.configure({"defaults": {"batch_rows": 3}})
    either_way.run_one("samples")
    rotate_samples(either_way, samples)

    result = either_way.run_one("samples")

    assert differences(either_way, "samples") == []
    assert result.rows_updated == samples.rows


def test_merging_equal_values_of_built_in_types_rewrites_nothing(either_way, samples):
    either_way.run_one("samples")
    either_way.on_source("update samples set sample_id = sample_id")  # new versions of the same content

    result = either_way.run_one("samples")

    assert pick(result, "rows_read", "rows_updated") == (samples.rows, 0)


def test_most_built_in_types_are_copied_in_binary_format(either_way):
    """The tests above copy these as binary too, and they would not notice if there were none."""
    samples = make_samples(either_way, [kind for kind in built_in_types(either_way) if kind in SAMPLES])

    assert len(columns_sent_as_text(either_way)) < len(samples.kinds) / 10


def test_built_in_types_keep_their_type_in_raw(either_way):
    kinds = [kind for kind in built_in_types(either_way) if kind in SAMPLES and not kind.startswith(("reg", "acl"))]
    kinds = make_samples(either_way, kinds).kinds

    either_way.run_one("samples")

    assert {kind: raw_type(either_way, "samples", kind) for kind in kinds} == {kind: kind for kind in kinds}


def test_a_key_of_any_built_in_type_keeps_batches_whole(either_way):
    """Where a batch ends is told by its key as text, and rows are merged by the key in raw."""
    kinds = [kind for (kind,) in either_way.on_source(SORTED_TYPES) if kind in SAMPLES]
    either_way.configure({"defaults": {"batch_rows": 2}})
    for kind in kinds:
        make_keyed(either_way, f"by {kind}", kind, SAMPLES[kind])
        either_way.run_one(f"by {kind}")
        either_way.on_source(sql.SQL("update {} set note = 'changed'").format(sql.Identifier(f"by {kind}")))

    result = either_way.run()

    assert len(kinds) > 40
    assert not result.has_failures, [table.error for table in result.tables if table.error]
    assert {kind: found for kind in kinds if (found := differences(either_way, f"by {kind}"))} == {}


def make_keyed(replication, table: str, kind: str, samples: list[str]) -> None:
    names = {"t": sql.Identifier(table), "k": sql.SQL(kind)}
    replication.on_source(sql.SQL("create table {t} (sample {k} primary key, note text)").format(**names))
    for sample in samples:
        insert = sql.SQL("insert into {t} values ({v}::{k}, 'first') on conflict do nothing")
        replication.on_source(insert.format(**names, v=sql.Literal(sample)))


def test_columns_of_types_without_values_arrive_as_null(either_way):
    columns = ", ".join(f'"{kind}" {kind}' for kind in WITHOUT_VALUES)
    either_way.on_source(f"create table blanks (blank_id int primary key, {columns})")
    either_way.on_source("insert into blanks values (1), (2)")

    assert_exact(either_way, "blanks")


def test_catalog_only_values_arrive_as_text(replication):
    replication.on_source(
        """
        create table facts (a int default 1 + 1, b int, c int);
        insert into facts select n % 10, n % 10, n % 3 from generate_series(1, 1000) as n;
        create statistics facts_statistics (ndistinct, dependencies, mcv) on a, b, c from facts;
        analyze facts;
        create table stored (
            stored_id int primary key, node pg_node_tree, n pg_ndistinct, d pg_dependencies, m pg_mcv_list
        );
        insert into stored
        select 1, (select adbin from pg_attrdef where adrelid = 'facts'::regclass),
            stxdndistinct, stxddependencies, stxdmcv
        from pg_statistic_ext_data
        """
    )

    assert_exact(replication, "stored")


def test_modifiers_of_types_arrive_with_the_values(either_way):
    types = {
        "numeric(5,2)": "-123.40",
        "numeric(1000,500)": "1" * 500 + "." + "0" * 499 + "1",
        "numeric(3,-2)": "12300",
        "numeric(2,5)": "0.00012",
        "character(5)": "a",
        "character varying(3)": "a  ",
        "bit(3)": "101",
        "bit varying(3)": "1",
        "time(0) without time zone": "24:00:00",
        "time(3) with time zone": "12:00:00.123+05:30",
        "timestamp(0) without time zone": "2024-01-01",
        "timestamp(3) with time zone": "2024-01-01 00:00:00.123+00",
        "interval(3)": "1 day 00:00:00.123",
        "interval year to month": "1 year 2 mons",
        "interval day to second(2)": "1 day 00:00:00.12",
    }
    columns = ", ".join(f'"{name}" {name}, "{name}[]" {name}[]' for name in types)
    either_way.on_source(f"create table modified (modified_id int primary key, {columns})")
    cells = ", ".join(f"'{value}', array['{value}', null]::{name}[]" for name, value in types.items())
    either_way.on_source(f"insert into modified values (1, {cells})")

    assert_exact(either_way, "modified")

    assert {name: raw_type(either_way, "modified", name) for name in types} == {name: name for name in types}


def test_arrays_of_catalog_rows_and_domains_arrive(either_way):
    """Their types have low oids, but other ones on another version, and binary arrays name the oid."""
    either_way.on_source(
        """
        create table inventories (
            inventory_id int primary key, a pg_am, aa pg_am[], n information_schema.sql_identifier,
            nn information_schema.sql_identifier[], t information_schema.time_stamp, cc pg_class[]
        );
        insert into inventories
        select 1, m, array[m, null], 'x', array['x', null], '2024-01-01 00:00:00.12+00',
            array[null, (select c from pg_class as c where relname = 'pg_type')]
        from pg_am as m limit 1
        """
    )

    assert_exact(either_way, "inventories")


def test_aclitem_may_name_a_role_missing_on_the_target(replication):
    replication.on_source("create role only_here; create table grants (grant_id int primary key, item aclitem)")
    try:
        replication.on_source("insert into grants values (1, 'only_here=r/postgres')")

        assert_exact(replication, "grants")
    finally:
        replication.on_source("drop table grants; drop role only_here")


def test_infinite_interval_is_exact_or_rejected_on_old_versions(downgrade):
    """Before PostgreSQL 17, the bytes of an infinite interval mean 178956970 years."""
    downgrade.on_source("create table spans (span_id int primary key, span interval, spans interval[])")
    downgrade.on_source("insert into spans values (1, 'infinity', null), (2, null, array['-infinity'::interval])")

    (result,) = downgrade.run("spans").tables

    assert is_refused_or_exact(downgrade, result, "spans")


def test_only_largest_interval_becomes_infinite_on_new_version(replication):
    """From PostgreSQL 17 on, the server itself takes that one for infinity, as the documented limits tell."""
    replication.on_source("create table spans (span_id int primary key, span interval)")
    largest = "178956970 years 7 mons 2147483647 days 2562047788:00:54.775807"
    next_to_it = "178956970 years 7 mons 2147483647 days 2562047788:00:54.775806"
    replication.on_source("insert into spans values (1, %s), (2, %s)", largest, next_to_it)

    replication.run_one("spans")

    assert differences(replication, "spans") == [("span", f'("{largest}")', "(infinity)")]


def is_refused_or_exact(replication, result, table: str) -> bool:
    if result.status == "failed" or result.rows_rejected:
        return True
    return differences(replication, table) == []


@pytest.mark.parametrize("setting", HOSTILE)
@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_database_settings_change_no_value(replication, setting, side):
    kinds = [kind for kind in built_in_types(replication) if kind in SAMPLES]
    make_samples(replication, kinds)
    send_as_text(replication)
    urls = {"source": [replication.source_url], "target": [replication.target_url]}
    for url in urls.get(side, [replication.source_url, replication.target_url]):
        change_setting(url, setting, HOSTILE[setting])

    assert_exact(replication, "samples")


def change_setting(url: str, name: str, value: str) -> None:
    """Set the database's default for sessions opened from now on."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        database = sql.Identifier(connection.info.dbname)
        alter = sql.SQL("alter database {} set {} = {}")
        cursor.execute(alter.format(database, sql.Identifier(name), sql.Literal(value)))


def test_text_in_another_encoding_arrives_exactly(replication, replicate_between):
    url = replication.source_url + "_latin1"
    replication.on_source(f"create database {url.rpartition('/')[2]} template template0 encoding 'LATIN1' locale 'C'")
    latin = replicate_between(url, replication.target_url)
    try:
        latin.on_source(
            """
            create type mood as enum ('così');
            create table words (
                word_id int primary key, t text, n name, v tsvector, j jsonb, tt text[], m mood, mm mood[]
            );
            """
        )
        latin.on_source(
            "insert into words values "
            "(1, 'é ß \\N', 'è', '''ü'':1', '{\"ö\": \"å\"}', array['ñ', null], 'così', array['così'::mood])"
        )

        assert_exact(latin, "words")
    finally:
        replication.on_source(f"drop database {url.rpartition('/')[2]} with (force)")


# Generated values

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
SPECIAL_TEXT = st.text(st.sampled_from("\\Nt.\n\r\t\"'{},() \b\v😀é%"), max_size=12)
TEXT = st.one_of(st.none(), st.text(CHARACTERS, max_size=60), SPECIAL_TEXT)
INT8 = st.integers(-(2**63), 2**63 - 1)
INT4 = st.integers(-(2**31), 2**31 - 1)
FLOAT8 = st.floats().map(repr)
NUMERIC = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**80), st.from_regex(r"\A[0-9]{1,60}\Z")),
    st.builds("{}e{}".format, st.integers(-999, 999), st.integers(-300, 300)),
)
TIMESTAMPTZ = st.one_of(
    st.datetimes().map(lambda instant: f"{instant.isoformat()}+00"),
    st.builds(
        "{:04}-06-{} 12:34:56.{:06} BC".format, st.integers(1, 4712), st.integers(1, 30), st.integers(0, 999_999)
    ),
    st.sampled_from(["infinity", "-infinity", "294276-12-31 23:59:59.999999+00"]),
)
# The largest interval means infinity from PostgreSQL 17 on; a test above shows what becomes of it.
INTERVAL = st.builds(
    "{} mons {} days {} microseconds".format,
    st.integers(-(10**9), 10**9),
    INT4,
    st.integers(-(2**62), 2**62),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), INT8, st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(CHARACTERS), inner, max_size=4)),
    max_leaves=12,
).map(json.dumps)
POINT = st.builds("({},{})".format, FLOAT8, FLOAT8)
GENERATED = {
    "text": TEXT,
    "character varying": TEXT,
    "bpchar": TEXT,
    "numeric": NUMERIC,
    "double precision": FLOAT8,
    "real": st.floats(width=32).map(repr),
    "bigint": INT8.map(str),  # a literal: the cast binds closer than the minus of a number
    "bytea": st.binary(max_size=200).map(psycopg2.Binary),
    "timestamp with time zone": TIMESTAMPTZ,
    "date": st.dates().map(str),
    "interval": INTERVAL,
    "uuid": st.uuids().map(str),
    "json": JSON,
    "jsonb": JSON,
    "bit varying": st.text("01", max_size=70),
    "inet": st.ip_addresses().map(str),
    "point": POINT,
    "int8range": st.tuples(INT8, INT8).map(lambda pair: "[{},{})".format(*sorted(pair))),
    "text[]": st.lists(TEXT, max_size=6),
    "numeric[]": st.lists(st.one_of(st.none(), NUMERIC), max_size=6),
    "double precision[]": st.lists(st.one_of(st.none(), FLOAT8), max_size=6),
}
GENERATED_ROW = st.tuples(*(st.one_of(st.none(), strategy) for strategy in GENERATED.values()))


@pytest.mark.has_long_form
@settings.get_profile(ON_SERVERS)
@given(rows=st.lists(st.tuples(GENERATED_ROW, GENERATED_ROW), min_size=10, max_size=60))
def test_generated_values_stay_exact_when_all_rows_change(replication, rows):
    table = f"generated_{next(_numbers)}"
    columns = ", ".join(f'"{kind}" {kind}' for kind in GENERATED)
    replication.on_source(f"create table {table} (row_id int primary key, {columns})")
    cells = ", ".join(f"%s::{kind}" for kind in GENERATED)
    for row_id, (first, _) in enumerate(rows):
        replication.on_source(f"insert into {table} values (%s, {cells})", row_id, *first)

    assert_exact(replication, table)

    names = ", ".join(f'"{kind}"' for kind in GENERATED)
    for row_id, (_, second) in enumerate(rows):
        replication.on_source(f"update {table} set ({names}) = row({cells}) where row_id = %s", *second, row_id)

    assert_exact(replication, table)


# User-defined types


def assert_exact_when_merged(replication, table: str) -> None:
    """Compare after a first load, and again after each row has the values of another one."""
    assert_exact(replication, table)
    names = [name for (name,) in replication.on_source(COLUMNS, "public", table)][1:]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    update = "update {t} as t set ({c}) = row({o}) from {t} as o where o.{k} = t.{k} %% (select count(*) from {t}) + 1"
    ((key, *_), *_) = replication.on_source(COLUMNS, "public", table)
    replication.on_source(
        sql.SQL(update.replace("%%", "%")).format(
            t=sql.Identifier(table),
            c=columns,
            o=sql.SQL(", ").join(sql.Identifier("o", name) for name in names),
            k=sql.Identifier(key),
        )
    )

    assert_exact(replication, table)


def test_enums_and_arrays_of_them_arrive_exactly(replication):
    replication.on_source(
        """
        create type "Odd mood" as enum ('', 'a b', 'it''s', 'back\\slash', 'a,b', '{x}', 'NULL', '"', '😀', '\\N');
        create table moods (mood_id int primary key, mood "Odd mood", moods "Odd mood"[], grid "Odd mood"[]);
        insert into moods
        select n, m, array[m, null, m]::"Odd mood"[], ('[4:5][0:0]=' || array[[m], [m]]::text)::"Odd mood"[]
        from unnest(enum_range(null::"Odd mood")) with ordinality as u (m, n)
        """
    )

    assert_exact_when_merged(replication, "moods")


def test_a_key_that_is_an_enum_keeps_batches_whole(replication):
    """On the source the key sorts as the enum does, in raw as text."""
    replication.on_source("create type size as enum ('small', 'medium', 'large')")
    replication.on_source("create table sizes (size size, n int, note text, primary key (size, n))")
    replication.on_source(
        "insert into sizes select s, n, 'x' from unnest(enum_range(null::size)) s, generate_series(1, 20) n"
    )
    replication.configure({"defaults": {"batch_rows": 7}})
    replication.run_one("sizes")
    replication.on_source("update sizes set note = 'y'")

    assert_exact(replication, "sizes")


def test_domains_arrive_exactly(replication):
    replication.on_source(
        """
        create type mood as enum ('sad', 'ok');
        create type pair as (a numeric, b text);
        create domain price as numeric(12, 3) check (value >= 0);
        create domain net_price as price check (value < 1000);
        create domain numbers as numeric(6, 2)[];
        create domain good_mood as mood check (value = 'ok');
        create domain good_moods as mood[];
        create domain code as char(5);
        create domain free as bpchar;
        create domain couple as pair;
        create domain span as numrange;
        create domain known as regclass;
        create table prices (
            price_id int primary key, a price, b net_price, c numbers, d good_mood, e good_moods, f code, g free,
            h couple, i span, j known
        );
        insert into prices values
            (1, 1.5, 2.000, array[1.5, null], 'ok', array['sad', 'ok']::mood[], 'a', 'b ', (1.0, 'x,y'), '[1.0,2)',
                'pg_class'),
            (2, null, 0, '[5:6]={1,2}', null, '{}', '', '', (null, ''), 'empty', null)
        """
    )

    assert_exact_when_merged(replication, "prices")

    assert raw_type(replication, "prices", "b") == "numeric(12,3)"


def test_arrays_of_domains_arrive_exactly(replication):
    replication.on_source(
        """
        create type mood as enum ('sad', 'ok');
        create domain price as numeric(12, 3);
        create domain net_price as price;
        create domain good_mood as mood;
        create table baskets (basket_id int primary key, a price[], b net_price[], c good_mood[]);
        insert into baskets values
            (1, array[1.5, null]::price[], array[[1, 2], [3, null]]::net_price[], array['ok', null]::good_mood[]),
            (2, '[3:4]={1,2.000}', '{}', null)
        """
    )

    assert_exact_when_merged(replication, "baskets")


def test_arrays_of_domains_over_arrays_arrive_exactly(replication):
    replication.on_source(
        """
        create domain numbers as int[];
        create table grids (grid_id int primary key, grid numbers[]);
        insert into grids values (1, array['{1,2}', null, '{}']::numbers[]), (2, '{}')
        """
    )

    assert_exact_when_merged(replication, "grids")


def test_composites_and_arrays_of_them_arrive_exactly(replication):
    replication.on_source(
        """
        create type mood as enum ('sad', 'a "b", c');
        create type inner_pair as (f float8, t text);
        create type pair as (i inner_pair, ii inner_pair[], m mood, b bytea, n numeric);
        create table pairs (pair_id int primary key, p pair, pp pair[]);
        insert into pairs values
            (1, row(row('-0', 'a "quoted" (, \\ '), array[row('NaN', null)::inner_pair], 'a "b", c', '\\xff', 1.00),
                array[row(null, null, null, null, null), null]::pair[]),
            (2, row(row(5e-324, ''), '{}', 'sad', '', 'NaN'), '{}'),
            (3, null, array[[row(row(0.1, E'tab\\t\\n'), null, null, null, 1.0)::pair]])
        """
    )

    assert_exact_when_merged(replication, "pairs")


def test_composites_of_tables_rows_arrive_exactly(replication):
    replication.on_source("create table lines (line_id int primary key, note text)")
    replication.on_source("create table bundles (bundle_id int primary key, line lines, lines lines[])")
    replication.on_source("insert into bundles values (1, (1, 'x'), array[row(2, null)::lines, null]), (2, null, '{}')")

    assert_exact_when_merged(replication, "bundles")


def test_user_defined_ranges_and_multiranges_arrive_exactly(replication):
    replication.on_source(
        """
        create type floatrange as range (subtype = float8, multirange_type_name = floatmultirange);
        create type wordrange as range (subtype = text, collation = "C");
        create table spans (
            span_id int primary key, f floatrange, ff floatrange[], m floatmultirange, mm floatmultirange[], w wordrange
        );
        insert into spans values
            (1, '[-0,0.1)', array['empty', null, '(,)']::floatrange[], '{[1,2),[3,NaN]}', '{}', '["a ,b",c)'),
            (2, 'empty', '{}', '{}', array['{(,0)}', null]::floatmultirange[], '(,"")')
        """
    )

    assert_exact_when_merged(replication, "spans")


def test_same_named_target_type_of_other_meaning_is_harmless(replication):
    replication.on_source("create type span as range (subtype = numeric)")
    replication.on_target("create type span as range (subtype = int4)")
    replication.on_source("create table spans (span_id int primary key, s span)")
    replication.on_source("insert into spans values (1, '[1.5,2.5)'), (2, '[1,2]')")

    (result,) = replication.run("spans").tables

    assert is_refused_or_exact(replication, result, "spans")


def test_user_defined_cast_to_text_changes_no_value(replication):
    replication.on_source(
        """
        create type mood as enum ('sad', 'ok');
        create function describe(mood) returns text language sql immutable as $$ select 'somebody feels something' $$;
        create cast (mood as text) with function describe(mood) as assignment;
        create table moods (mood_id int primary key, mood mood, moods mood[]);
        insert into moods values (1, 'sad', array['ok', null]::mood[]), (2, 'ok', '{}')
        """
    )

    assert_exact(replication, "moods")


@pytest.mark.parametrize("on_target", ["create extension vector", "select 1"], ids=["known", "unknown"])
def test_types_of_an_extension_arrive_exactly_on_any_target(replication, on_target):
    replication.on_source("create extension vector")
    replication.on_target(on_target)
    replication.on_source(
        "create table items (item_id int primary key, v vector(3), vv vector[], h halfvec, s sparsevec)"
    )
    replication.on_source(
        "insert into items values (1, '[1,0.1,-0]', array['[1]', null]::vector[], '[1.5,2]', '{1:1.5,3:-2}/5'), "
        "(2, null, '{}', null, null)"
    )

    assert_exact_when_merged(replication, "items")


def test_extension_that_the_target_gets_later_leaves_text_as_it_is(replication):
    replication.on_source(
        "create extension vector; create table items (item_id int primary key, v vector(3), w vector[])"
    )
    replication.on_source("insert into items values (1, '[1,2,3]', '{}'), (2, null, null)")
    replication.run_one("items")
    replication.on_target("create extension vector")
    replication.on_source("update items set v = '[3,2,1]', w = array['[1]'::vector]")
    replication.events.clear()

    assert_exact_when_merged(replication, "items")
    assert raw_type(replication, "items", "v") == "text"
    assert raw_type(replication, "items", "w") == "text[]"
    noted = [event.message for event in replication.events if "as text" in event.message]
    assert any("had no type public.vector(3) when it was loaded: `etl reset items` gives it" in one for one in noted)
    replication.run("items", options=RunOptions(full_refresh=True))
    assert raw_type(replication, "items", "v") == "vector(3)"
    assert_exact(replication, "items")


# Columns and tables


def test_generated_and_identity_columns_arrive_as_values(replication):
    replication.on_source(
        """
        create table boxes (
            box_id bigint generated always as identity (start 9223372036854775800) primary key,
            width numeric, area numeric generated always as (width * width) stored,
            serial_number int generated by default as identity, label text generated always as ('№ ' || width) stored
        );
        create function f() returns int language sql immutable return 1;
        insert into boxes (width) values (1.50), (null), ('NaN')
        """
    )
    replication.run_one("boxes")
    replication.on_source("update boxes set width = width + 1.000")

    assert_exact(replication, "boxes")

    assert replication.on_target(
        "select count(*) from pg_attribute where attrelid = 'raw.boxes'::regclass "
        "and (attgenerated <> '' or attidentity <> '')"
    ) == [(0,)]


def test_virtual_generated_columns_arrive_as_values(downgrade):
    downgrade.on_source(
        "create table boxes (box_id int primary key, width numeric, area numeric generated always as (width * 2))"
    )
    downgrade.on_source("insert into boxes (box_id, width) values (1, 1.50), (2, null)")
    downgrade.run_one("boxes")
    downgrade.on_source("update boxes set width = 7.0 where box_id = 1")

    assert_exact(downgrade, "boxes")


NAMES = [
    "Mixed Case",
    "select",
    "user",
    "etl_batch",
    "runs",
    "merged",
    "tab\tnew\nline",
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "per%s cent%",
    "{brace} {0}",
    "dot.dot",
    ":name $1 --",
    "é😀",
    " blank ",
    "x" * 62 + "a",
    "é" * 31 + "b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_and_a_column_of_any_name_arrive_exactly(replication, name):
    table, column = sql.Identifier(name), sql.Identifier(name + "") if name != "id" else sql.Identifier("other")
    replication.on_source(
        sql.SQL("create table {} (id int, {} text, primary key (id, {}))").format(table, column, column)
    )
    replication.on_source(sql.SQL("insert into {} values (1, 'a'), (2, 'b')").format(table))
    assert_exact(replication, name)
    replication.on_source(sql.SQL("insert into {} values (3, 'c')").format(table))

    assert_exact(replication, name)


def test_columns_differing_in_case_or_last_byte_stay_separate(replication):
    long = "y" * 62
    replication.on_source(
        f'create table twins (id int primary key, "ID" int, "Id" int, {long}a int, {long}b int);'
        "insert into twins values (1, 2, 3, 4, 5)"
    )

    assert_exact(replication, "twins")


def test_tables_differing_in_the_last_byte_stay_separate(replication):
    names = ["z" * 62 + "a", "z" * 62 + "b"]
    for number, name in enumerate(names):
        replication.on_source(f"create table {name} (id int primary key); insert into {name} values ({number})")

    result = replication.run(*names)

    assert not result.has_failures, f"expected that every table succeeds, found {result}"
    assert [differences(replication, name) for name in names] == [[], []]


def test_columns_named_like_statement_aliases_arrive_exactly(replication):
    replication.on_source(
        """
        create table aliases (
            s int primary key, b int, r text, picked int, excluded text, merged int, is_inserted boolean, raw text,
            aliases text, updated_at timestamptz not null default now()
        );
        insert into aliases
        select n, n, 'r' || n, n, 'e', n, false, 'raw', 'alias' from generate_series(1, 20) as n
        """
    )
    replication.configure({"defaults": {"batch_rows": 6}})
    assert_exact(replication, "aliases")
    replication.on_source("update aliases set r = 'changed', is_inserted = true, updated_at = clock_timestamp()")

    result = replication.run_one("aliases")

    assert differences(replication, "aliases") == []
    assert pick(result, "rows_inserted", "rows_updated") == (0, 20)


@pytest.mark.parametrize("column", ["picked", "s", "raw"])
def test_verify_finds_differences_beside_an_alias_named_column(replication, column):
    replication.on_source(f"create table aliases (id int primary key, {column} int, note text)")
    replication.on_source("insert into aliases values (1, 1, 'a')")
    replication.run_one("aliases")
    replication.on_target("update raw.aliases set note = 'b'")

    finished = replication.command("verify", "aliases")

    assert finished.returncode == 1
    assert "different" in finished.stdout


def test_a_schema_other_than_public_is_read(replication):
    replication.on_source('create schema "Sales %s"; create table "Sales %s"."Orders" (id int primary key, note text)')
    replication.on_source('create table "Orders" (other int primary key); insert into "Orders" values (9)')
    replication.on_source('insert into "Sales %s"."Orders" values (1, \'x\'), (2, null)')
    replication.configure({"schema": "Sales %s"})

    result = replication.run()

    assert [table.table_name for table in result.tables] == ["Orders"]
    assert differences(replication, "Orders", "Sales %s") == []


def test_types_in_a_schema_other_than_public_arrive_exactly(replication):
    replication.on_source(
        """
        create schema "My Types";
        create type "My Types"."Mood" as enum ('sad');
        create domain "My Types"."Price" as numeric(5, 2);
        create type "My Types"."Pair" as (a "My Types"."Mood", b "My Types"."Price"[]);
        create table things (
            thing_id int primary key, a "My Types"."Mood", b "My Types"."Price"[], c "My Types"."Pair",
            d "My Types"."Pair"[]
        );
        insert into things values (1, 'sad', '{1.5}', ('sad', '{1}'), array[row('sad', '{}')::"My Types"."Pair"]),
            (2, null, '{}', null, '{}')
        """
    )

    assert_exact_when_merged(replication, "things")


def test_a_table_with_only_key_columns_arrives_exactly(replication):
    replication.on_source("create table members (a numeric, b text, c uuid, primary key (c, a, b))")
    replication.on_source(
        "insert into members select n / 4.0, 'b' || n, gen_random_uuid() from generate_series(1, 50) as n"
    )
    replication.configure({"defaults": {"batch_rows": 7}})
    assert_exact(replication, "members")
    replication.on_source("update members set a = a * 1.00")  # equal by the key's operator, other digits
    replication.on_source("insert into members values ('NaN', '', gen_random_uuid())")

    assert_exact(replication, "members")


def test_a_table_without_rows_arrives_empty(replication):
    replication.on_source("create table nothing (id int primary key, note text)")

    replication.run_one("nothing")
    replication.run_one("nothing")

    assert replication.on_target("select count(*) from raw.nothing") == [(0,)]


def test_dropped_columns_of_the_source_are_left_out(replication):
    replication.on_source("create table slim (gone int, id int primary key, gone_too text, note text)")
    replication.on_source(
        "insert into slim values (1, 1, 'x', 'y'); alter table slim drop column gone, drop column gone_too"
    )

    assert_exact(replication, "slim")


def test_500_columns_arrive_exactly(replication):
    kinds = ["int", "text", "numeric", "float8", "boolean"]
    columns = ", ".join(f"c{n} {kinds[n % len(kinds)]}" for n in range(WIDE_COLUMNS))
    replication.on_source(f"create table wide (id int primary key, {columns})")
    values = ["n", "'text ' || n", "n / 8.0", "n / 7.0", "n % 2 = 0"]
    cells = ", ".join(values[n % len(values)] for n in range(WIDE_COLUMNS))
    replication.on_source(f"insert into wide select n, {cells} from generate_series(1, 20) as n")
    assert_exact(replication, "wide")
    replication.on_source("update wide set c499 = not c499, c0 = null")

    assert_exact(replication, "wide")


def test_a_row_of_50_megabytes_arrives_exactly_and_is_merged(replication):
    replication.on_source("create table files (file_id int primary key, body bytea, note text)")
    fill = "repeat(md5(%s), %s)"
    replication.on_source(
        f"insert into files values (1, decode({fill}, 'hex'), {fill})",
        *("bytes", 2 * LARGE_BYTES // 32, "text", LARGE_BYTES // 32),
    )
    replication.run_one("files")
    first = read_digests(replication)
    replication.on_source("update files set note = note || 'é', body = body || '\\x00'")
    replication.run_one("files")
    second = read_digests(replication)

    assert first["raw"] == first["public"]
    assert second["raw"] == second["public"]
    assert second["raw"] != first["raw"]
    assert first["raw"][0][0] == LARGE_BYTES


def read_digests(replication) -> dict[str, list[tuple[Any, ...]]]:
    """Return length and digest of the large values: their text is better left on the servers."""
    digest = "select octet_length(body), md5(body), octet_length(note), md5(note) from {}.files"
    return {
        "public": replication.on_source(digest.format("public")),
        "raw": replication.on_target(digest.format("raw")),
    }


def test_multi_level_partitioned_table_arrives_as_one_table(replication):
    replication.on_source(
        """
        create table sales (id int, region text, sold_on date, note text, primary key (id, region, sold_on))
            partition by list (region);
        create table sales_north partition of sales for values in ('north') partition by range (sold_on);
        create table sales_north_old partition of sales_north for values from (minvalue) to ('2024-01-01');
        create table sales_north_new partition of sales_north for values from ('2024-01-01') to (maxvalue)
            partition by hash (id);
        create table sales_north_new_0 partition of sales_north_new for values with (modulus 2, remainder 0);
        create table sales_north_new_1 partition of sales_north_new for values with (modulus 2, remainder 1);
        create table sales_rest (note text, gone int, sold_on date not null, region text not null, id int not null);
        alter table sales_rest drop column gone;
        alter table sales attach partition sales_rest default;
        insert into sales
        select n, (array['north', 'south', 'east'])[n % 3 + 1], date '2023-12-01' + n, 'note ' || n
        from generate_series(1, 100) as n
        """
    )
    assert_exact(replication, "sales")
    replication.on_source(
        "update sales set note = upper(note); insert into sales values (101, 'west', 'infinity', null)"
    )

    assert_exact(replication, "sales")

    assert replication.on_target("select count(*) from raw.sales") == [(101,)]
    assert [table.table_name for table in replication.run().tables] == ["sales"]


def test_a_row_that_moves_to_another_partition_arrives_once(replication):
    replication.on_source(
        """
        create table moves (id int primary key, note text) partition by range (id);
        create table moves_low partition of moves for values from (0) to (100);
        create table moves_high partition of moves for values from (100) to (200);
        insert into moves values (1, 'a'), (150, 'b')
        """
    )
    replication.run_one("moves")
    replication.on_source("alter table moves detach partition moves_high; update moves_high set note = 'c'")
    replication.on_source("alter table moves attach partition moves_high for values from (100) to (200)")

    assert_exact(replication, "moves")


def test_unlogged_tables_arrive_exactly(replication):
    replication.on_source("create unlogged table quick (id int primary key); insert into quick values (1)")

    assert_exact(replication, "quick")


@pytest.mark.parametrize(("kind", "label"), [("view", "a view"), ("materialized view", "a materialized view")])
def test_configured_view_is_rejected_with_the_reason(orders, kind, label):
    orders.on_source(f"create {kind} recent as select * from orders")
    orders.configure({"tables": {"recent": {}}})

    results = {table.table_name: table for table in orders.run().tables}

    assert results["recent"].status == "failed"
    assert results["orders"].status == "succeeded"
    assert f"public.recent is {label}: only tables are replicated" in results["recent"].error
    assert orders.on_target("select to_regclass('raw.recent')") == [(None,)]


@pytest.mark.parametrize("kind", ["view", "materialized view"])
def test_unconfigured_view_is_ignored(orders, kind):
    orders.on_source(f"create {kind} recent as select * from orders")

    result = orders.run()

    assert [table.table_name for table in result.tables] == ["orders"]


@pytest.mark.parametrize("column", ["_etl_run_id", "_etl_synced_at", "_etl_deleted_at"])
def test_column_with_a_reserved_name_is_rejected(replication, column):
    replication.on_source(f"create table clashes (id int primary key, {column} bigint)")

    (result,) = replication.run("clashes").tables

    assert result.status == "failed"
    assert f"public.clashes has a column {column}, and names that begin with _etl_ are reserved for raw" in result.error
    assert replication.on_target("select to_regclass('raw.clashes')") == [(None,)]
