"""That rows of tables arrive whole whose keys have an order or an equality of their own, in every way of reading."""

from dataclasses import dataclass

import psycopg2.errors
import pytest

from etl.commands.verify import verify
from etl.model import RunOptions
from tests.results import pick

# A type like citext: an order and an equality of its own, and a cast to text by which names find other operators.
FOLDED = """
    create type folded;
    create function folded_in(cstring) returns folded language internal immutable strict as 'textin';
    create function folded_out(folded) returns cstring language internal immutable strict as 'textout';
    create type folded (input = folded_in, output = folded_out, like = text);
    create cast (folded as text) without function as implicit;
    create function folded_cmp(folded, folded) returns int language sql immutable strict
        as $$ select pg_catalog.bttextcmp({fold}($1::text collate "C"), {fold}($2::text collate "C")) $$;
    {operators}
"""
# The comparisons of a type by its function TYPE_cmp; a reversed class gives each operator's name to its opposite.
OPERATOR = """
    create function {type}_{word}({type}, {type}) returns boolean language plpgsql immutable strict
        as $$ begin return public.{type}_cmp($1, $2) {name} 0; end $$;
    create operator {shown} (
        leftarg = {type}, rightarg = {type}, function = {type}_{word}, commutator = {commutator}, {more}
    )
"""
WORDS = {"<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">": "gt"}
OPPOSITE = {"<": ">", "<=": ">=", "=": "=", ">=": "<=", ">": "<"}


def operators(kind, *, is_reversed=False):
    """Return the statements that give a type its comparison operators and a default btree class of them."""
    shown = {name: OPPOSITE[name] if is_reversed else name for name in WORDS}
    made = [
        OPERATOR.format(
            type=kind,
            word=word,
            name=name,
            shown=shown[name],
            commutator=OPPOSITE[shown[name]],
            more="restrict = eqsel, join = eqjoinsel, merges" if name == "=" else "restrict = scalarltsel",
        )
        for name, word in WORDS.items()
    ]
    members = ", ".join(f"operator {place} {shown[name]}" for place, name in enumerate(WORDS, 1))
    made.append(
        f"create operator class {kind}_order default for type {kind} using btree as {members}, "
        f"function 1 {kind}_cmp({kind}, {kind})"
    )
    return ";".join(made) + ";"


@dataclass(frozen=True)
class Key:
    """The type of a key column, and the expression that makes the n-th of its values."""

    column: str  # type and collation
    value: str
    on_both: str = ""
    on_source: str = ""


FOLDED_TYPE = FOLDED.format(fold="pg_catalog.lower", operators=operators("folded"))
MIXED = "case n %% 2 when 0 then 'k' else 'K' end || chr(97 + n %% 26) || n"
MOOD = """
    create type mood as enum ({labels});
    create function describe(mood) returns text language sql immutable as $$ select 'a mood' $$;
    create cast (mood as text) with function describe(mood) as {context};
""".format(labels=", ".join(f"'m{(n * 37) % 101}'" for n in range(101)), context="{context}")
BACKWARDS = """
    create type backwards;
    create function backwards_in(cstring) returns backwards language internal immutable strict as 'int4in';
    create function backwards_out(backwards) returns cstring language internal immutable strict as 'int4out';
    create type backwards (input = backwards_in, output = backwards_out, like = int4);
    create cast (backwards as int4) without function as implicit;
    create cast (int4 as backwards) without function;
    create function backwards_cmp(backwards, backwards) returns int language sql immutable strict
        as $$ select pg_catalog.btint4cmp($1::int4, $2::int4) $$;
"""
SAME_CLASS = """
    create type labelled;
    create function labelled_in(cstring) returns labelled language internal immutable strict as 'textin';
    create function labelled_out(labelled) returns cstring language internal immutable strict as 'textout';
    create type labelled (input = labelled_in, output = labelled_out, like = text, collatable = true);
    create cast (labelled as text) without function as implicit;
    create cast (labelled as int4) with inout as implicit
"""
EXTENSION_TYPE = FOLDED_TYPE + "; alter extension plpgsql add type folded"
KEYS = {
    "type with equality of its own": Key("folded", MIXED, on_source=FOLDED_TYPE),
    "type of an extension": Key("folded", MIXED, on_both=EXTENSION_TYPE),
    "domain over one": Key(
        "folded_name", MIXED, on_both=EXTENSION_TYPE, on_source="create domain folded_name as folded"
    ),
    "array of one": Key("folded[]", f"array[{MIXED}]", on_both=EXTENSION_TYPE),
    "reversed operator class": Key("backwards", "n", on_source=BACKWARDS + operators("backwards")),
    "operators by opposite names": Key(
        "backwards", "n", on_source=BACKWARDS + operators("backwards", is_reversed=True)
    ),
    "type with the class of text": Key("labelled", "n::text", on_source=SAME_CLASS),
    "enum with a cast": Key("mood", "'m' || n", on_source=MOOD.format(context="assignment")),
    "enum with an implicit cast": Key("mood", "'m' || n", on_source=MOOD.format(context="implicit")),
    "domain over such an enum": Key(
        "mood_name", "'m' || n", on_source=MOOD.format(context="implicit") + "create domain mood_name as mood"
    ),
    "composite with an implicit cast": Key(
        "pair",
        "format('(%%s,%%s)', n %% 7, n)",
        on_source="create type pair as (a int, b int); create function pair_text(pair) returns text language sql "
        "immutable as $$ select 'a pair' $$; create cast (pair as text) with function pair_text(pair) as implicit",
    ),
    "domain and column of other collations": Key(
        'word collate "default"', MIXED, on_source='create domain word as text collate "POSIX"'
    ),
    "column of its own collation": Key('text collate "POSIX"', MIXED),
    "vector, which raw cannot join": Key("vector", "array[n %% 10, n]::float4[]", on_both="create extension vector"),
    "citext": Key("citext", MIXED, on_both="create extension citext"),
    "ltree": Key("ltree", "'a.' || chr(65 + n %% 26) || '.b' || n", on_both="create extension ltree"),
    "cube": Key("cube", "format('(%%s,%%s)', n %% 7, n)", on_both="create extension cube"),
    "isn": Key("issn", "issn(lpad(n::text, 7, '0'), true)", on_both="create extension isn"),
    "hstore": Key("hstore", 'format(\'"k%%s"=>"%%s"\', n %% 3, n)', on_both="create extension hstore"),
    "seg": Key("seg", "n || '..' || (n + n %% 5)", on_both="create extension seg"),
    "nondeterministic collation": Key(
        "text collate folding",
        MIXED,
        on_source="create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    ),
    "domain with such a collation": Key(
        "word collate folding",
        MIXED,
        on_source="create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        'create domain word as text collate "C"',
    ),
}
BATCH_ROWS = 7


@pytest.fixture(params=KEYS)
def key(request, replication):
    found = KEYS[request.param]
    try:
        if found.on_both:
            replication.on_target(found.on_both)
        replication.on_source(f"select 1; {found.on_both}; {found.on_source}")
    except psycopg2.errors.FeatureNotSupported as error:  # a server without contrib, or without ICU
        pytest.skip(f"not tested is a key such as {request.param}: {str(error).splitlines()[0]}")
    replication.configure(
        {"defaults": {"batch_rows": BATCH_ROWS, "max_delete_fraction": 1}, "tables": {"plain": {"watermark": None}}}
    )
    for table, more in (("stamped", ", updated_at timestamptz not null default now()"), ("plain", "")):
        replication.on_source(
            f"create table {table} (k {found.column}, number int, note text{more}, primary key (k, number))"
        )
        replication.on_source(f"create table {table}_alone (k {found.column} primary key, note text{more})")
    return found


TABLES = ("stamped", "stamped_alone", "plain", "plain_alone")


def insert(replication, key, first, last):
    for table in TABLES:
        columns, values = ("k, note", "") if table.endswith("_alone") else ("k, number, note", "n %% 3, ")
        statement = (
            f"insert into {table} ({columns}) select x.k, {values}'note ' || n from generate_series(%s, %s) as n"
        )
        kind = key.column.partition(" ")[0]
        replication.on_source(f"{statement} cross join lateral (select ({key.value})::{kind} as k) as x", first, last)


def read(replication, table):
    """Return the rows of both sides as text, sorted; raw without tombstones."""
    columns = "k, note" if table.endswith("_alone") else "k, number, note"
    source = replication.on_source(f"select row({columns})::text from {table}")
    raw = replication.on_target(f"select row({columns})::text from raw.{table} where _etl_deleted_at is null")
    return sorted(source), sorted(raw)


def run(replication, **options):
    result = replication.run(options=RunOptions(**options))
    assert [table.error for table in result.tables if table.error] == []
    for table in TABLES:
        source, raw = read(replication, table)
        assert source == raw, table
    return {table.table_name: table for table in result.tables}


def test_rows_arrive_whatever_orders_their_key(replication, key):
    insert(replication, key, 1, 60)
    assert run(replication)["stamped"].rows_inserted == 60

    insert(replication, key, 61, 100)
    found = run(replication)
    assert {name: found[name].rows_inserted for name in TABLES} == dict.fromkeys(TABLES, 40)

    for table in TABLES:
        stamp = ", updated_at = now()" if table.startswith("stamped") else ""
        replication.on_source(f"update {table} set note = note || '!'{stamp} where right(note, 1) in ('1', '2', '3')")
        replication.on_source(f"delete from {table} where right(note, 1) in ('8', '9')")
    found = run(replication, reconcile=True)
    assert {name: found[name].rows_deleted for name in TABLES} == dict.fromkeys(TABLES, 20)
    assert {verdict.is_equal for verdict in verify(replication.settings)} == {True}


def test_repair_finds_each_row_whatever_orders_its_key(replication, key):
    insert(replication, key, 1, 60)
    run(replication)
    for table in TABLES:
        replication.on_target(f"update raw.{table} set note = 'other' where right(note, 1) in ('1', '2', '3')")
        replication.on_target(f"delete from raw.{table} where right(note, 1) = '4'")
        replication.on_source(f"delete from {table} where right(note, 1) = '9'")

    verdicts = verify(replication.settings)
    assert {pick(found, "error", "missing", "extra", "changed") for found in verdicts} == {(None, 6, 6, 18)}
    assert {len(example.columns) for found in verdicts for example in found.examples if example.kind == "changed"} == {
        1
    }

    assert {verdict.is_equal for verdict in verify(replication.settings, is_repair=True)} == {True}
    for table in TABLES:
        source, raw = read(replication, table)
        assert source == raw, table
