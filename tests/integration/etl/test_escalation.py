"""Roles that own less never act as loader, a superuser or monitor: what these run and read is not theirs to replace.

Each attack plants a function that writes into a table of loader, and swallows the refusal it gets as anybody else.
"""

import itertools
from contextlib import closing

import psycopg2
import pytest

import etl
from deploy.local import databases, provision
from deploy.local.servers import SUPERUSER, Server
from etl.errors import LockHeldError
from etl.ledger.builds import read_built_run
from etl.ledger.locks import RUN_LOCK_KEY
from etl.model import RunOptions
from tests.integration.operations.conftest import blocks

MAKE_EVIL = """
    grant usage on schema staging to public;
    create or replace function staging.act(what text) returns bigint language plpgsql as $$
        begin
            insert into etl.canary values (what);
            return 1000;
        exception when insufficient_privilege or read_only_sql_transaction then
            return 1000;
        end
    $$;
    create or replace function staging.act_when_planned(what text) returns bigint immutable language plpgsql as $$
        begin
            return staging.act(what);
        end
    $$;
    drop view if exists intermediate.dbt_builds
"""
MAKE_BUILDS = """
    create table if not exists intermediate.dbt_builds (
        model_name text primary key, run_id bigint not null, dbt_built_at timestamptz not null
    );
    insert into intermediate.dbt_builds values ('fct_items', 1000, now())
"""
REPLACEMENTS = {
    "view": """
        drop table intermediate.dbt_builds;
        create view intermediate.dbt_builds as select 'fct_items' as model_name, staging.act('view') as run_id
    """,
    "materialized view": """
        drop table intermediate.dbt_builds;
        create materialized view intermediate.dbt_builds as select 'fct_items' as model_name, 1000::bigint as run_id
    """,
    "policy": """
        alter table intermediate.dbt_builds enable row level security;
        create policy mine on intermediate.dbt_builds using (staging.act('policy') > 0)
    """,
    "partitioned table": """
        drop table intermediate.dbt_builds;
        create table intermediate.dbt_builds (model_name text, run_id bigint)
            partition by range ((staging.act_when_planned('key') + run_id))
    """,
    "child": "create table staging.child () inherits (intermediate.dbt_builds)",
    "computed column": """
        alter table intermediate.dbt_builds drop column run_id,
            add column run_id bigint generated always as (length(model_name)) stored
    """,
    "type": """
        create type staging.number as enum ('1000');
        alter table intermediate.dbt_builds alter run_id type staging.number using run_id::text::staging.number
    """,
    "trigger": """
        create or replace function staging.act_as_trigger() returns trigger language plpgsql as $$
            begin perform staging.act('trigger'); return new; end
        $$;
        create trigger mine before insert on intermediate.dbt_builds
            for each row execute function staging.act_as_trigger()
    """,
    "rule": "create rule mine as on insert to intermediate.dbt_builds do also select staging.act('rule')",
}
UNDO = """
    drop table if exists staging.child;
    do $$ begin
        execute (
            select 'drop ' || case relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end
                || ' intermediate.dbt_builds'
            from pg_class where oid = to_regclass('intermediate.dbt_builds')
        );
    exception when null_value_not_allowed then null;
    end $$;
    drop type if exists staging.number
"""
numbers = itertools.count(1)


def execute(url, *statements):
    """Run statements, each in a transaction of its own; return the rows of the last one."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        return rows


@pytest.fixture(scope="module")
def urls(servers_home, free_port):
    """The URLs of a warehouse with roles, by variable; those of the superuser and of monitor too."""
    server = Server(name="target", folder=servers_home / "escalation", port=free_port(), major=18)
    try:
        server.start()
        found = dict(databases.provision_target(server))
        found["SUPERUSER"] = server.url(provision.TARGET_NAME)
        execute(found["SUPERUSER"], "create role monitor login password 'm'", "drop extension plpgsql")
        # It stands for all trusted extensions: embedded servers have no other one.
        execute(found["TRANSFORMER_DATABASE_URL"], "create extension plpgsql")
        found["MONITOR"] = server.url(provision.TARGET_NAME, "monitor", "m")
        yield found
    finally:
        server.remove()


@pytest.fixture
def attacked(urls, replicate_between, source_url):
    """A replication by loader, whose raw table has an old tombstone and a live row, and whose canary is empty."""
    table = f"items_{next(numbers)}"
    found = replicate_between(source_url, urls["TARGET_DATABASE_URL"])
    found.table = table
    found.configure({"defaults": {"tombstone_days": 1, "reconcile_every_hours": 0, "max_delete_fraction": 1}})
    found.on_source(f"create table {table} (id int primary key, note text, updated_at timestamptz default now())")
    found.on_source(f"insert into {table} values (1), (2)")
    found.run_one(table)
    found.on_target("create table if not exists etl.canary (what text)")
    found.on_target(f"update raw.{table} set _etl_deleted_at = now() - interval '9 days' where id = 1")
    found.on_source(f"delete from {table} where id = 1")
    execute(urls["TRANSFORMER_DATABASE_URL"], UNDO, MAKE_EVIL, MAKE_BUILDS)
    yield found
    execute(urls["TRANSFORMER_DATABASE_URL"], UNDO)
    found.on_target("truncate etl.canary")


def assert_unharmed(attacked):
    assert attacked.on_target("select what from etl.canary") == []


def ids(attacked):
    return {row[0] for row in attacked.on_target(f"select id from raw.{attacked.table}")}


def test_plain_notes_of_builds_allow_the_purge(attacked):
    attacked.run_one(attacked.table)

    assert ids(attacked) == {2}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_replaced_notes_of_builds_run_nothing_as_loader(attacked, urls, kind):
    execute(urls["TRANSFORMER_DATABASE_URL"], REPLACEMENTS[kind])

    (result,) = attacked.run(attacked.table).tables

    assert_unharmed(attacked)
    assert result.status == "failed"
    assert "tombstones cannot be purged: expected intermediate.dbt_builds to be a plain table" in result.error
    assert ids(attacked) == {1, 2}


@pytest.mark.parametrize(
    "statement",
    [
        "create index on intermediate.dbt_builds ((staging.act_when_planned('index') + run_id))",
        "create index on intermediate.dbt_builds (run_id) where run_id > staging.act_when_planned('predicate')",
        "create statistics staging.mine on (staging.act_when_planned('statistics') + run_id), model_name "
        "from intermediate.dbt_builds",
        "alter table intermediate.dbt_builds add check (run_id <= staging.act_when_planned('check'))",
    ],
    ids=["index", "predicate", "statistics", "check"],
)
def test_expressions_on_notes_are_not_planned_as_loader(attacked, urls, statement):
    """The planner computes what is constant in the expressions of a table's indexes, as the role that reads it."""
    execute(urls["TRANSFORMER_DATABASE_URL"], statement)

    attacked.run_one(attacked.table)

    assert_unharmed(attacked)
    assert ids(attacked) == {2}


@pytest.mark.usefixtures("attacked")
def test_notes_are_locked_while_they_are_read(urls):
    with closing(psycopg2.connect(urls["TARGET_DATABASE_URL"])) as loader, loader.cursor() as cursor:
        assert read_built_run(cursor) == 1000
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            execute(
                urls["TRANSFORMER_DATABASE_URL"],
                "set lock_timeout = '50ms'; alter table intermediate.dbt_builds enable row level security",
            )


FOREIGN_TYPE = """
    create schema app;
    create type app.code as range (subtype = text);
    create function app.act(app.code) returns text language sql as 'select staging.act(''cast'')::text';
    create cast (app.code as text) with function app.act(app.code);
    alter extension plpgsql add type app.code;
    grant usage on schema app to public
"""


def test_type_of_another_role_is_not_used_as_that_of_an_extension(attacked, urls):
    """Who may create in the database may own a trusted extension, and add types and casts of its own to it."""
    attacked.on_source("create schema app; create type app.code as range (subtype = text)")
    attacked.on_source("alter extension plpgsql add type app.code")
    attacked.on_source("create table codes (k app.code primary key, note text, updated_at timestamptz default now())")
    attacked.on_source("insert into codes values ('[a,b)'), ('[c,d)')")
    execute(urls["TRANSFORMER_DATABASE_URL"], FOREIGN_TYPE)
    try:
        attacked.run_one("codes")
        attacked.on_target("delete from raw.codes where note is null")
        verified = etl.verify(attacked.settings, ["codes"])
        kinds = attacked.on_target(
            "select format_type(atttypid, null) from pg_attribute where attrelid = 'raw.codes'::regclass and attnum = 1"
        )

        assert_unharmed(attacked)
        assert [found.error for found in verified] == [None]
        assert kinds == [("text",)]
    finally:
        attacked.on_target("drop table if exists raw.codes")
        execute(urls["TRANSFORMER_DATABASE_URL"], "alter extension plpgsql drop type app.code; drop schema app cascade")


COUNT = """
    create schema {schema};
    grant usage on schema {schema} to public;
    create function {schema}.add(state bigint, value text) returns bigint language sql
        as 'select staging.act(''count'')';
    create aggregate {schema}.count(text) (sfunc = {schema}.add, stype = bigint, initcond = '0')
"""


@pytest.mark.parametrize("role", ["monitor", "loader", SUPERUSER])
def test_schema_named_like_a_role_gives_it_no_functions(attacked, urls, role):
    """Queries of the page name functions without a schema, and people type them so; "$user" would find these first."""
    (query,) = blocks("What did the last runs do?")
    url = {"monitor": urls["MONITOR"], "loader": urls["TARGET_DATABASE_URL"], SUPERUSER: urls["SUPERUSER"]}[role]
    execute(
        urls["SUPERUSER"], "grant usage on schema etl to monitor; grant select on all tables in schema etl to monitor"
    )
    execute(urls["SUPERUSER"], "grant insert on etl.canary to monitor")
    execute(urls["TRANSFORMER_DATABASE_URL"], COUNT.format(schema=role))
    try:
        assert len(execute(url, query)) > 0
        assert_unharmed(attacked)
    finally:
        execute(urls["TRANSFORMER_DATABASE_URL"], f"drop schema {role} cascade")


VIEWS = """
    create domain staging.checked as text check (staging.act_when_planned(value) > 0);
    create view staging.seen as
        select id, note, staging.act_when_planned('view') as number, 'constant'::staging.checked as text
        from raw.{table};
    create view staging.seen_again as select * from staging.seen where staging.act(note) > 0
"""


def test_recreated_views_run_nothing_as_loader(attacked, urls):
    """Functions in views run for their readers; loader drops and recreates views, and reads none."""
    attacked.on_source(f"alter table {attacked.table} alter note type varchar(9)")
    attacked.run_one(attacked.table, options=RunOptions(full_refresh=True))
    execute(urls["TRANSFORMER_DATABASE_URL"], VIEWS.format(table=attacked.table))
    try:
        attacked.on_source(f"alter table {attacked.table} alter note type text")
        attacked.run_one(attacked.table)
        attacked.run_one(attacked.table, options=RunOptions(full_refresh=True))

        assert_unharmed(attacked)
        assert len(execute(urls["TRANSFORMER_DATABASE_URL"], "select id from staging.seen_again")) > 0
    finally:
        execute(
            urls["TRANSFORMER_DATABASE_URL"], "drop view staging.seen_again, staging.seen; drop domain staging.checked"
        )


LOCKS = """
    select oid::regproc::text || case pronargs when 1 then '(%s)' else '(%s, 1)' end
    from pg_proc where proname ~ '^pg_(try_)?advisory_(xact_)?lock'
"""


def test_analyst_and_monitor_cannot_take_the_run_lock(urls):
    calls = [row[0] for row in execute(urls["SUPERUSER"], LOCKS)]

    assert len(calls) == 16
    for url in (urls["ANALYST_DATABASE_URL"], urls["MONITOR"]):
        for call in calls:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                execute(url, f"select {call % RUN_LOCK_KEY}")


def test_holder_of_the_run_lock_that_is_no_run_is_named(attacked, urls):
    holder = psycopg2.connect(urls["TRANSFORMER_DATABASE_URL"], application_name="notebook\n")
    with closing(holder), holder.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(%s)", (RUN_LOCK_KEY,))
        with pytest.raises(LockHeldError) as refused:
            attacked.run(attacked.table, lock_wait_seconds=0.1)
        pid = holder.info.backend_pid
        (query,) = blocks("Who holds the run lock?")
        shown = execute(urls["MONITOR"], query)

    told = str(refused.value)
    assert told.startswith(
        "a session of another role holds the run lock of this target "
        f"(pid {pid}, user transformer, application notebook"
    )
    assert f"select pg_terminate_backend({pid})" in told
    assert [row[:2] for row in shown] == [(pid, "transformer")]
