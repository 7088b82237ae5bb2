"""Names and values that are statements stay names and values, wherever they come from: SQL, tables.yml, the catalogs.

Both databases hold a table that every one of them tries to drop, and the runs work as superusers: were one of them
ever read as SQL, the table would be gone.
"""

import json
import shlex
from contextlib import closing
from urllib.parse import quote

import psycopg2
import pytest
import yaml
from psycopg2 import sql

from tests.results import pick

DROP = "drop table public.canary"
ATTACKS = {
    "a closed identifier": f'x"; {DROP}; --',
    "a closed literal": f"x'; {DROP}; --",
    "both, doubled": f"""x''""; {DROP}; --""",
    "a backslash before a quote": f"x\\'; {DROP}; --",
    "a closed bracket": f'x"); {DROP}; --',
    "dollar quotes": f"$$; {DROP}; $$",
    "a comment": f"x*/; {DROP}; /*",
    "placeholders of the driver": f"%s %(oid)s %% {DROP}",
    "placeholders of a template": f"{{}} {{0}} {{raw}} {{x!r}} {DROP}",
    "lines": f"x\n; {DROP}\n;--\t\\.\r",
    "COPY's end": f"\\.\n{DROP};",
    "look-alike quotes": f"x\u02bc\uff02; {DROP}; --\u2028",
    "a type": f"int); {DROP}; --",
}
# Names are 63 bytes at most.
assert all(len(attack.encode()) <= 50 for attack in ATTACKS.values())


@pytest.fixture
def guarded(replication):
    for do in (replication.on_source, replication.on_target):
        do("create table public.canary (a int primary key); insert into public.canary values (7)")
    return replication


def assert_unharmed(replication):
    for ask in (replication.on_source, replication.on_target):
        assert ask("select a from public.canary") == [(7,)]


def compose(text, **names):
    return sql.SQL(text).format(**{key: sql.Identifier(value) for key, value in names.items()})


def equal_rows(replication, schema, table):
    """Return the rows of a table of the source, as text, which have to be those of raw."""
    names = [row[0] for row in replication.on_source(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum",
        sql.Identifier(schema, table).as_string(replication.source),
    )]  # fmt: skip
    columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
    of_source = sql.SQL("select {} from {}").format(columns, sql.Identifier(schema, table))
    of_raw = sql.SQL("select {} from {} where _etl_deleted_at is null").format(columns, sql.Identifier("raw", table))
    rows = sorted(replication.on_source(of_source), key=repr)
    assert sorted(replication.on_target(of_raw), key=repr) == rows
    return rows


def succeed(replication, *arguments, **environment):
    finished = replication.command(*arguments, **environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.mark.parametrize("kind", ATTACKS)
def test_table_with_sql_in_all_names_and_values_is_replicated(guarded, kind):
    """Schema, table, key, watermark, columns, enum type with its labels, domain, trigger, values, and tables.yml."""
    attack = ATTACKS[kind]
    names = {"schema": "s" + attack, "table": attack, "key": "k" + attack, "mark": "w" + attack, "value": attack}
    names |= {"mood": "m" + attack, "size": "d" + attack, "first": "f" + attack, "second": "g" + attack}
    for statement in (
        "create schema {schema}",
        "create domain {schema}.{size} as numeric(6, 2)",
        "create table {schema}.{table} ({key} text, n int, {mark} timestamptz default clock_timestamp(), {value} text, "
        "primary key ({key}, n))",
        "create index on {schema}.{table} ({mark})",
    ):
        guarded.on_source(compose(statement, **names))
    labels = sql.SQL("create type {} as enum ({}, 'other')").format(
        sql.Identifier(names["schema"], names["mood"]), sql.Literal("e" + attack)
    )
    guarded.on_source(labels)
    guarded.on_source(compose("alter table {schema}.{table} add {first} {schema}.{mood}", **names))

    def add(first, last):
        guarded.on_source(
            sql.SQL(
                "insert into {schema}.{table} ({key}, n, {value}, {first}) "
                "select {text}, n, {text}, {label} from generate_series({least}, {most}) as n"
            ).format(
                **{name: sql.Identifier(names[name]) for name in ("schema", "table", "key", "value", "first")},
                text=sql.Literal(attack),
                label=sql.Literal("e" + attack),
                least=sql.Literal(first),
                most=sql.Literal(last),
            )
        )

    add(1, 300)
    entry = {"watermark": names["mark"], "batch_rows": 50, "max_delete_fraction": 1}
    document = {"schema": names["schema"], "discover": False, "tables": {names["table"]: entry}}
    tables = guarded.write_tables(yaml.safe_dump(document, allow_unicode=True))
    given = {"ETL_TABLES": str(tables), "ETL_FENCE_MARGIN_SECONDS": "0"}

    succeed(guarded, "run", **given)
    assert len(equal_rows(guarded, names["schema"], names["table"])) == 300

    guarded.on_source(compose("alter table {schema}.{table} add {second} {schema}.{size} default 1.50", **names))
    add(301, 400)
    guarded.on_source(
        sql.SQL("update {}.{} set {} = {} || 'x', {} = clock_timestamp() where n between 100 and 200").format(
            *(sql.Identifier(names[name]) for name in ("schema", "table", "value", "value", "mark"))
        )
    )
    guarded.on_source(compose("delete from {schema}.{table} where n < 20", **names))
    succeed(guarded, "run", "--reconcile", "--log-format", "json", **given)
    assert len(equal_rows(guarded, names["schema"], names["table"])) == 381

    guarded.on_target(sql.SQL("delete from {} where n = 42").format(sql.Identifier("raw", names["table"])))
    assert guarded.command("verify", names["table"], **given).returncode == 1
    succeed(guarded, "verify", "--repair", names["table"], **given)
    succeed(guarded, "reset", names["table"], **given)
    (status,) = json.loads(succeed(guarded, "status", "--json", **given).stdout)
    proposed = yaml.safe_load(succeed(guarded, "discover", "--schema", names["schema"]).stdout)

    assert pick(status, "table_name", "watermark_column") == (names["table"], names["mark"])
    assert proposed["tables"].keys() == {names["table"]}
    assert len(equal_rows(guarded, names["schema"], names["table"])) == 381
    assert_unharmed(guarded)


@pytest.mark.parametrize("kind", ATTACKS)
def test_rejected_row_and_views_of_any_name_are_preserved(guarded, kind):
    """The target's catalog is composed as well: views that are taken off and put back, their columns and comments."""
    attack = ATTACKS[kind]
    names = {"table": attack, "value": "v" + attack, "view": "w" + attack, "rule": "c" + attack}
    guarded.on_source(
        compose("create table {table} (a text primary key, {value} varchar(90), updated_at timestamptz)", **names)
    )
    guarded.on_source(compose("insert into {table} values ('a', 'a', now()), ('b', 'b', now())", **names))
    guarded.run_one(attack)
    guarded.on_target(compose("create view public.{view} as select a, {value} from raw.{table}", **names))
    comment = sql.SQL("comment on column public.{}.{} is {}").format(
        *(sql.Identifier(names[name]) for name in ("view", "value")), sql.Literal(attack)
    )
    guarded.on_target(comment)
    guarded.on_target(compose("alter table raw.{table} add constraint {rule} check ({value} <> 'bad')", **names))

    guarded.on_source(compose("alter table {table} alter {value} type text", **names))
    guarded.on_source(
        sql.SQL("insert into {} values ({}, 'bad', now()), ('c', {}, now())").format(
            sql.Identifier(attack), sql.Literal(attack), sql.Literal(attack)
        )
    )
    result = guarded.run_one(attack)

    assert pick(result, "rows_inserted", "rows_rejected") == (1, 1)
    assert guarded.on_target("select table_name, key from etl.rejected_rows") == [(attack, json.dumps([attack]))]
    assert len(guarded.on_target(compose("select * from public.{view}", **names))) == 3
    assert guarded.on_target(
        "select col_description(%s::regclass, 2)", sql.Identifier("public", names["view"]).as_string(guarded.target)
    ) == [(attack,)]
    guarded.on_source(sql.SQL("delete from {} where a = {}").format(sql.Identifier(attack), sql.Literal(attack)))
    guarded.run()
    assert len(equal_rows(guarded, "public", attack)) == 3
    assert_unharmed(guarded)


@pytest.mark.parametrize("kind", ATTACKS)
def test_database_and_role_of_any_name_can_be_used(guarded, kind):
    """The URL is percent-encoded; what holds a watermark back is told by its application's name."""
    attack = ATTACKS[kind]
    parts = {**psycopg2.extensions.parse_dsn(guarded.target_url), "dbname": attack}
    name = sql.Identifier(attack)
    guarded.on_target(sql.SQL("create database {} template template0").format(name))
    try:
        url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(
            **{key: quote(value, safe="") for key, value in parts.items()}
        )
        guarded.on_source("create table orders (a int primary key, updated_at timestamptz default now())")
        guarded.on_source("insert into orders values (1)")
        with guarded.open_source() as holder, holder.cursor() as cursor:
            cursor.execute("select set_config('application_name', %s, false), count(*) from orders", (attack,))
            succeed(guarded, "run", "orders", TARGET_DATABASE_URL=url)
            succeed(guarded, "status", TARGET_DATABASE_URL=url)
        holder.close()
        with closing(psycopg2.connect(url)) as target, target.cursor() as cursor:
            cursor.execute("select a from raw.orders")
            assert cursor.fetchall() == [(1,)]
    finally:
        guarded.on_target(sql.SQL("drop database {} with (force)").format(name))
    assert_unharmed(guarded)


def test_proposed_statements_work_for_any_name(guarded):
    """People paste them: names in them are quoted as in every other statement, and for a shell in its commands."""
    attack = ATTACKS["a comment"].replace("/", "") + '"'
    guarded.on_source(sql.SQL("create table {} (a int, updated_at timestamptz)").format(sql.Identifier(attack)))
    tables = guarded.write_tables(yaml.safe_dump({"tables": {attack: {}, "canary": {}}}))

    told = guarded.command("run", attack, ETL_TABLES=str(tables)).stderr
    statement = told[told.index("alter table") : told.index("add primary key (...)")]
    guarded.on_source(f"{statement} add primary key (a)")
    assert guarded.command("run", attack, ETL_TABLES=str(tables)).returncode == 0

    guarded.on_source(sql.SQL("alter table {} alter a type text").format(sql.Identifier(attack)))
    told = guarded.command("run", attack, ETL_TABLES=str(tables)).stderr
    command = told[told.index("`etl reset ") + 1 : told.rindex("`")]
    assert shlex.split(command) == ["etl", "reset", attack]
    assert_unharmed(guarded)


# A source's superuser can replace what describes its types.
FORGE = """
    create function pg_catalog.true_format_type(oid, integer) returns text language internal stable as 'format_type';
    create or replace function pg_catalog.format_type(oid, integer) returns text language sql stable as
        $$ select case when $1 = {oid} and $2 is not null then {text} else pg_catalog.true_format_type($1, $2) end $$
"""
FORGED_TYPES = {
    "a statement": f"point); {DROP}; create table public.mine (a int",
    "another column": "point, mine int",
    "a default": "point default '(1,2)'",
    "a check": "point check (false)",
    "a type by its short name": "bigserial",
    "an array": "point[]",
}


@pytest.mark.parametrize("kind", FORGED_TYPES)
def test_forged_types_of_a_source_are_refused(guarded, kind):
    guarded.on_source("create table places (a int primary key, place point, updated_at timestamptz)")
    guarded.on_source("create table others (a int primary key, updated_at timestamptz)")
    guarded.on_source("insert into places values (1, '(1,2)', now())")
    guarded.run("others")
    ((oid,),) = guarded.on_source("select 'point'::regtype::oid")
    guarded.on_source(FORGE.format(oid=oid, text="'{}'".format(FORGED_TYPES[kind].replace("'", "''"))))

    results = {result.table_name: result for result in guarded.run().tables}

    assert_unharmed(guarded)
    assert guarded.on_target("select to_regclass('raw.places'), to_regclass('public.mine')") == [(None, None)]
    assert results["places"].status == "failed"
    assert "expected the name of a type" in results["places"].error
    assert results["others"].status == "succeeded"


def test_forged_type_of_an_added_column_is_refused(guarded):
    guarded.on_source("create table places (a int primary key, updated_at timestamptz)")
    guarded.run("places")
    guarded.on_source("alter table places add place point")
    ((oid,),) = guarded.on_source("select 'point'::regtype::oid")
    guarded.on_source(FORGE.format(oid=oid, text=f"'point; {DROP}'"))

    (result,) = guarded.run("places").tables

    assert_unharmed(guarded)
    assert result.status == "failed"
    assert guarded.on_target(
        "select count(*) from pg_attribute where attrelid = 'raw.places'::regclass and attname = 'place'"
    ) == [(0,)]
