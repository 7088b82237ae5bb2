"""That rows of tables arrive whole whose keys have an order or an equality of their own, in every way of reading."""

from dataclasses import dataclass

import psycopg2.errors
import pytest
from psycopg2 import sql

import etl
from etl.commands.verify import verify
from etl.model import RunOptions
from etl.source import statements
from etl.source.session import Source
from etl.source.statements import Window
from etl.target.types import read_types
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
    create function describe(mood) returns text language sql immutable as $$ select 'm0' $$;
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
        as $$ select pg_catalog.btint4cmp($2::int4, $1::int4) $$;
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
    "order that is reversed": Key("backwards", "n", on_source=BACKWARDS + operators("backwards")),
    "operators of opposite names": Key(
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
        "immutable as $$ select '(0,0)' $$; create cast (pair as text) with function pair_text(pair) as implicit",
    ),
    "built-in type with a cast": Key(
        "bigint",
        "n",
        on_source="create function first(bigint) returns text language sql immutable as $$ select '1' $$;"
        "create cast (bigint as text) with function first(bigint) as assignment;"
        "create function never(timestamptz) returns text language sql immutable as $$ select 'infinity' $$;"
        "create cast (timestamptz as text) with function never(timestamptz) as assignment",
    ),
    "domain and column of other collations": Key(
        'word collate "C"', MIXED, on_source='create domain word as text collate "POSIX"'
    ),
    "column of its own collation": Key('text collate "POSIX"', MIXED),
    "vector, which raw cannot join": Key("vector", "array[n %% 10, n]::float4[]", on_both="create extension vector"),
    "citext": Key("citext", MIXED, on_both="create extension citext"),
    "ltree": Key("ltree", "'a.' || chr(65 + n %% 26) || '.b' || n", on_both="create extension ltree"),
    "cube": Key("cube", "format('(%%s,%%s)', n %% 7, n)", on_both="create extension cube"),
    "isn": Key("issn", "lpad(n::text, 7, '0') || '?'", on_both="create extension isn"),
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
TABLES = ("stamped", "plain")


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
    replication.on_source(
        f"create table stamped (k {found.column}, number int, note text, updated_at timestamptz not null default now(),"
        f" primary key (number, k)); create table plain (k {found.column} primary key, note text)"
    )
    return found


def insert(replication, key, first, last):
    kind = key.column.partition(" ")[0]
    for table, names, values in (("stamped", "k, number, note", "x.k, n %% 3"), ("plain", "k, note", "x.k")):
        replication.on_source(
            f"insert into {table} ({names}) select {values}, 'note ' || n from generate_series(%s, %s) as n"
            f" cross join lateral (select ({key.value})::{kind} as k) as x",
            first,
            last,
        )


def read(replication, table):
    """Return the rows of both sides as text, sorted; raw without tombstones."""
    source = replication.on_source(f"select row(k, note)::text from {table}")
    raw = replication.on_target(f"select row(k, note)::text from raw.{table} where _etl_deleted_at is null")
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
        stamp = ", updated_at = now()" if table == "stamped" else ""
        replication.on_source(f"update {table} set note = note || '!'{stamp} where right(note, 1) in ('1', '2', '3')")
        replication.on_source(f"delete from {table} where right(note, 1) in ('8', '9')")
    found = run(replication, reconcile=True)
    assert {name: found[name].rows_deleted for name in TABLES} == dict.fromkeys(TABLES, 20)
    assert {verdict.is_equal for verdict in verify(replication.settings)} == {True}

    run(replication, full_refresh=True)
    for table in TABLES:
        tombstones = replication.on_target(f"select count(*) from raw.{table} where _etl_deleted_at is not null")
        assert tombstones == [(20,)], table


def test_repair_finds_each_row_whatever_orders_its_key(replication, key):
    insert(replication, key, 1, 60)
    run(replication)
    for table in TABLES:
        replication.on_target(f"update raw.{table} set note = 'other' where right(note, 1) in ('1', '2', '3')")
        replication.on_target(f"delete from raw.{table} where right(note, 1) = '4'")
        replication.on_source(f"delete from {table} where right(note, 1) = '9'")

    verdicts = verify(replication.settings)
    assert {pick(found, "error", "missing", "extra", "changed") for found in verdicts} == {(None, 6, 6, 18)}
    assert {example.columns for found in verdicts for example in found.examples} == {(), ("note",)}

    assert {verdict.is_equal for verdict in verify(replication.settings, is_repair=True)} == {True}
    for table in TABLES:
        source, raw = read(replication, table)
        assert source == raw, table


@pytest.fixture
def folded(replication):
    """A replication of a table whose key has a type of an extension."""
    for side in (replication.on_source, replication.on_target):
        side(EXTENSION_TYPE)
    replication.on_source(
        "create table items (k folded primary key, note text, updated_at timestamptz not null default now());"
        f"insert into items select ({MIXED.replace('%%', '%')})::folded, 'note ' || n from generate_series(1, 60) as n"
    )
    replication.configure({"defaults": {"batch_rows": BATCH_ROWS, "max_delete_fraction": 1}})
    return replication


def test_key_that_changes_to_an_equal_one_keeps_its_row(folded):
    folded.run_one("items")
    folded.on_source("update items set k = upper(k::text)::folded, updated_at = now() where right(note, 1) = '7'")

    result = folded.run_one("items")

    assert pick(result, "rows_inserted", "rows_updated") == (0, 6)
    source, raw = read(folded, "items")
    assert source == raw


def test_load_in_ranges_of_such_keys_continues(folded):
    folded.on_source("update items set note = note || repeat('.', 900)")

    def change(event):
        """Change, move and delete rows between two ranges, with stamps that stay."""
        if event.kind == "table_continued" and not folded.events:
            folded.on_source("update items set k = upper(k::text)::folded where note like '%7.%'")
            folded.on_source("update items set note = note || '!' where note like '%3.%'")
            folded.on_source("delete from items where note like '%9.%'")
            folded.events.append(event)

    settings = folded.settings_with(load_range_blocks=1, max_snapshot_seconds=0.0)
    (result,) = etl.run(settings, ["items"], observe=change).tables

    assert pick(result, "error", "rows_inserted") == (None, 54)
    assert folded.events != []
    source, raw = read(folded, "items")
    assert source == raw


def test_rejected_rows_with_such_keys_are_retried(folded):
    folded.run_one("items")
    folded.on_target("alter table raw.items add constraint short check (length(note) < 8)")
    folded.on_source("update items set note = 'too long now', updated_at = now() where right(note, 1) = '5'")
    assert folded.run_one("items").rows_rejected == 6

    folded.on_target("alter table raw.items drop constraint short")
    folded.run_one("items")

    assert folded.on_target("select * from etl.rejected_rows") == []
    source, raw = read(folded, "items")
    assert source == raw


def read_table(replication, name):
    with Source(replication.settings) as source:
        (table,) = source.read_catalog(read_types(replication.target), [name]).tables
    return table


@pytest.mark.parametrize("read_from", [None, "2024-02-29"], ids=["by key", "by watermark"])
def test_batches_of_such_keys_begin_in_the_index(folded, read_from):
    folded.on_source("create index on items (updated_at, k)")
    window = Window(read_from=read_from, after=("2024-02-29", "kb1")[read_from is None :], limit=5)
    with folded.source.cursor() as cursor:
        cursor.execute("set enable_seqscan = off; set enable_bitmapscan = off; set search_path = ''")
        end = statements.window_end(read_table(folded, "items"), window)
        cursor.execute(sql.SQL("explain {}").format(end))
        plan = "\n".join(line for (line,) in cursor)

    assert "Index Cond" in plan
    assert "Sort" not in plan


# Built-in types


def test_keys_of_built_in_types_are_compared_plainly(replication):
    replication.on_source(
        """
        create type mood as enum ('sad', 'ok'); create type pair as (a int, b text);
        create domain amount as numeric(9, 2); create domain word as text;
        create type spans as range (subtype = float8)
        """
    )
    kinds = [
        "smallint", "bigint", "numeric(9,2)", "real", "text", "varchar(9)", "char(3)", "name", "uuid", "date",
        "interval", "timestamptz(3)", "timetz", "boolean", "bytea", "inet", "cidr", "macaddr", "oid", "money", "bit(3)",
        "varbit", "jsonb", "tsvector", "int4range", "datemultirange", "text[]", "mood", "mood[]", "pair", "amount",
        "word", "spans", 'text collate "C"',
    ]  # fmt: skip
    columns = ", ".join(f"k{place} {kind}" for place, kind in enumerate(kinds))
    for place in range(0, len(kinds), 17):  # an index has at most 32 columns
        names = ", ".join(f"k{n}" for n in range(place, min(place + 17, len(kinds))))
        replication.on_source(f"create table t{place} ({columns}, primary key ({names}))")
        table = read_table(replication, f"t{place}")
        assert len(table.key) == min(17, len(kinds) - place)
        assert [column.name for column in table.columns if column.key_order or column.raw_equality] == []


# Keys that cannot be read


def test_batch_whose_end_is_not_read_back_fails(replication):
    replication.on_source(
        """
        create type hidden;
        create function hidden_in(cstring) returns hidden language internal immutable strict as 'textin';
        create function hidden_out(hidden) returns cstring language internal immutable strict as 'byteaout';
        create type hidden (input = hidden_in, output = hidden_out, like = text, collatable = true);
        create cast (hidden as text) without function as implicit;
        create table items (k hidden primary key);
        insert into items select ('k' || n)::hidden from generate_series(1, 30) as n
        """
    )
    replication.configure({"defaults": {"batch_rows": BATCH_ROWS}})
    replication.run_one("items")
    replication.on_source("update items set k = k; insert into items values ('l')")  # more than a batch is new

    (result,) = replication.run("items").tables

    assert result.status == "failed"
    assert "these values, read back as text, are not those of that row" in str(result.error)
    assert replication.on_target("select count(*) from raw.items") == [(30,)]


def test_incomplete_operator_class_of_a_key_is_refused(replication):
    made = BACKWARDS + operators("backwards")
    replication.on_source(made.replace("operator 4 >=, ", ""))
    replication.on_source("create table items (k backwards primary key)")

    (result,) = replication.run("items").tables

    assert result.status == "failed"
    assert "its operator class backwards_order lacks some of the operators" in str(result.error)
    assert "alter operator family ... using btree add operator" in str(result.error)
    assert replication.on_target("select to_regclass('raw.items')") == [(None,)]


def test_key_whose_operators_may_not_be_used_is_refused(folded, read_as_role):
    folded.on_source("create schema apart; alter operator = (folded, folded) set schema apart")
    read_as_role(True)

    (result,) = folded.run("items").tables

    assert result.status == "failed"
    assert "grant usage on schema apart to the role of SOURCE_DATABASE_URL" in str(result.error)
    assert folded.on_target("select to_regclass('raw.items')") == [(None,)]


@pytest.mark.parametrize("batch_rows", [1, 100], ids=["in two batches", "in one batch"])
def test_keys_that_only_raw_takes_for_equal_fail(replication, batch_rows):
    replication.configure({"defaults": {"batch_rows": batch_rows}})
    exact = FOLDED.format(fold="pg_catalog.btrim", operators=operators("folded"))
    replication.on_source(f"{exact}; alter extension plpgsql add type folded")
    replication.on_target(EXTENSION_TYPE)
    replication.on_source(
        "create table items (k folded primary key, note text, updated_at timestamptz not null default now());"
        "insert into items values ('k', 'first')"
    )
    replication.run_one("items")
    replication.on_source("insert into items values ('X', 'second'), ('x', 'third'), ('K', 'fourth')")

    (result,) = replication.run("items").tables

    assert result.status == "failed"
    found = {1: "create the target's database with the locale of the source's", 100: "equal in raw: compare the types"}
    assert found[batch_rows] in str(result.error)
    assert replication.on_target("select note from raw.items where k::text = 'k'") == [("first",)]
