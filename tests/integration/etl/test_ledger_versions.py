"""Every ledger that a release ever made is upgraded whole, with all that it says, or left as it is."""

import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Computed, MetaData, create_engine

from etl.errors import EtlError, LockHeldError
from etl.ledger import locks
from etl.ledger.runs import prepare
from etl.ledger.tables import METADATA
from etl.ledger.versions import VERSION
from tests.integration.etl.old_ledgers import (
    DEFINITIONS,
    FOLDER,
    SHAPES,
    STATED,
    TABLES,
    add_rows,
    contents,
    keeps,
    put_ledger,
    sql_of,
    state,
    upgrade,
)

CHECKS = """
    select conrelid::regclass::text, conname::text from pg_constraint
    where connamespace = 'etl'::regnamespace and contype = 'c'
"""
COMPUTED = """
    select attrelid::regclass::text, attname::text, pg_get_expr(adbin, adrelid)
    from pg_attribute join pg_attrdef on adrelid = attrelid and adnum = attnum
    join pg_class as c on c.oid = attrelid and c.relnamespace = 'etl'::regnamespace where attgenerated <> ''
"""
IDENTITIES = """
    select attrelid::regclass::text, attname::text, attidentity = 'a'
    from pg_attribute join pg_class as c on c.oid = attrelid and c.relnamespace = 'etl'::regnamespace
    where attidentity <> '' and not attisdropped
"""
WAITING = "select pid from pg_locks where not granted and database = {}"
THIS_DATABASE = "(select oid from pg_database where datname = current_database())"


def waiting(replication):
    return [pid for (pid,) in replication.on_target(WAITING.format(THIS_DATABASE))]


@contextmanager
def blocked_migration(replication, wait_until):
    """Bring the ledger up in a thread that waits amid its statements; yield the errors that it raises."""
    errors = []
    with closing(psycopg2.connect(replication.target_url)) as holder, holder.cursor() as cursor:
        cursor.execute(
            "lock table etl.watermarks in share update exclusive mode"
        )  # keeps DDL off, and lets others read
        with closing(psycopg2.connect(replication.target_url)) as migrating:
            migrating.autocommit = True

            def work():
                try:
                    prepare(migrating)
                except EtlError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            wait_until(lambda: len(waiting(replication)) == 1)
            yield errors
            holder.rollback()
            thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# What every ledger becomes


def test_ledgers_of_all_releases_are_present():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(SHAPES)


@pytest.fixture(params=["new", *SHAPES, "each release in turn"])
def current(request, replication):
    """A ledger of this release: a new one, or one that was upgraded."""
    if request.param == "each release in turn":
        for shape in SHAPES:
            replication.on_target(sql_of(shape))
        add_rows(replication, SHAPES[-1])
    elif request.param != "new":
        put_ledger(replication, request.param)
    upgrade(replication)
    return replication


def test_alembic_finds_the_ledger_equal_to_the_tables(current):
    expected = MetaData()
    for table in METADATA.tables.values():
        table.to_metadata(expected)
    runs = expected.tables["etl.runs"]
    runs.comment = f"Ledger version {VERSION}. {runs.comment}"
    engine = create_engine(current.target_url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, parents: kind != "schema" or name == "etl",
            "compare_server_default": True,
        }
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), expected)
        connection.rollback()
    engine.dispose()

    assert differences == []


def test_ledger_has_the_comments_checks_and_computed_columns(current):
    comments = {}
    for table in METADATA.tables.values():
        comments[f"etl.{table.name}", None] = table.comment
        comments |= {(f"etl.{table.name}", column.name): column.comment for column in table.columns}
    comments["etl.runs", None] = f"Ledger version {VERSION}. {comments['etl.runs', None]}"
    columns = [(f"etl.{table.name}", column) for table in METADATA.tables.values() for column in table.columns]

    found = {
        (relation, name): comment if what == "column" else definition
        for what, relation, name, definition, *_, comment in current.on_target(DEFINITIONS)
        if what in ("column", "table")
    }
    assert found == comments
    assert len(found) > 60
    assert sorted(current.on_target(CHECKS)) == sorted(
        (f"etl.{table.name}", check.name)
        for table in METADATA.tables.values()
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    )
    assert [(table, name, plain(text)) for table, name, text in current.on_target(COMPUTED)] == [
        (table, column.name, plain(str(column.computed.sqltext)))
        for table, column in columns
        if isinstance(column.computed, Computed)
    ]
    assert sorted(current.on_target(IDENTITIES)) == sorted(
        (table, column.name, column.identity.always) for table, column in columns if column.identity
    )


def plain(expression):
    return expression.translate(str.maketrans("", "", "() "))


@pytest.mark.parametrize("shape", SHAPES)
def test_upgraded_ledger_equals_a_new_one(replication, shape):
    upgrade(replication)
    new = replication.on_target(DEFINITIONS)
    replication.on_target("drop schema etl cascade")
    put_ledger(replication, shape)
    old = replication.on_target(DEFINITIONS)

    upgrade(replication)

    assert old != new
    assert replication.on_target(DEFINITIONS) == new


def test_upgrading_a_current_ledger_changes_nothing(current):
    before = state(current)

    upgrade(current)

    assert len(before[2]) > 50
    assert state(current) == before


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_an_older_ledger_are_kept(replication, shape):
    put_ledger(replication, shape)
    before = contents(replication)

    upgrade(replication)

    after = contents(replication)
    assert len(before) == {"1": 3, "2": 5, "3a": 6}.get(shape, 7)
    assert keeps(before, after)
    assert replication.on_target("select rows_unchanged from etl.table_runs where run_id = 1") == [
        (6 if shape == "1" else 3,)
    ]
    assert replication.on_target("insert into etl.runs default values returning run_id") == [(len(after["runs"]) + 1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_running_runs_of_an_older_ledger_are_marked_as_died(replication, shape):
    put_ledger(replication, shape)

    prepare(replication.target)

    died = [(4, "the run vanished")] + [(5, "another run began before this one had ended")] * (shape >= "4")
    assert replication.on_target("select run_id, error from etl.runs where status = 'died' and run_id > 3") == died
    assert replication.on_target("select status from etl.table_runs where run_id = 4") == [("died",)]


@pytest.fixture
def reader(replication):
    """A role of somebody else, which owns schema reports and may read some of a ledger."""
    ((name,),) = replication.on_target("select 'reader_' || current_database()")
    replication.on_target(f"create role {name}; create schema reports authorization {name}")
    yield name
    replication.on_target(f"drop owned by {name}; drop role {name}")


@pytest.mark.parametrize("shape", SHAPES)
def test_grants_and_views_of_others_are_kept(replication, reader, shape):
    put_ledger(replication, shape)
    replication.on_target(
        f"grant usage on schema etl to {reader}; grant select on etl.runs, etl.table_runs to {reader};"
        f"grant select (rows_unchanged, retries), references (rows_unchanged) on etl.table_runs to {reader} "
        "with grant option; grant select (rows_unchanged) on etl.table_runs to public"
    )
    view = "create view reports.runs as select r.run_id, r.status, t.rows_read{} from etl.runs as r join "
    view += "etl.table_runs as t using (run_id)"
    replication.on_target(view.format("" if shape == "1" else ", t.rows_unchanged"))
    replication.on_target(f"alter view reports.runs owner to {reader}")
    columns = "select attname, attacl::text from pg_attribute where attrelid = 'etl.table_runs'::regclass "
    columns += "and attacl is not null order by 1"
    before = replication.on_target(columns), replication.on_target("table reports.runs")

    upgrade(replication)

    assert (replication.on_target(columns), replication.on_target("table reports.runs")) == before
    assert len(before[0]) == 2
    assert replication.on_target("select has_table_privilege(%s, 'etl.runs', 'select')", reader) == [(True,)]


def test_dependent_view_blocks_the_upgrade_and_keeps_the_ledger(replication):
    """The run cannot begin, and names the view."""
    put_ledger(replication, "1")
    replication.on_target("create view public.report as select rows_unchanged from etl.table_runs")
    before = state(replication)

    finished = replication.command("run")

    assert finished.returncode == 3
    assert "view public.report depends on column rows_unchanged" in finished.stderr
    assert state(replication) == before


def test_release_before_version_5_loses_nothing_of_newer_ones(replication):
    """It sets the version back, as it does not know better; the next run upgrades it again."""
    put_ledger(replication, "4")
    upgrade(replication)
    before = state(replication)

    replication.on_target(sql_of("4"))
    set_back = contents(replication), replication.on_target(STATED)[0][0][:17]
    upgrade(replication)

    assert set_back == (before[1], "Ledger version 4.")
    assert state(replication)[:2] == before[:2]


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all, and one at a time


@pytest.mark.parametrize("shape", SHAPES)
def test_killed_migration_leaves_the_old_version_intact(replication, shape, wait_until):
    put_ledger(replication, shape)
    before = state(replication)

    with blocked_migration(replication, wait_until) as errors:
        replication.on_target("select pg_terminate_backend(%s)", *waiting(replication))
        wait_until(lambda: bool(errors))
    found = state(replication)
    upgrade(replication)

    assert errors[0].is_transient
    assert found == before
    assert keeps(before[1], contents(replication))
    assert replication.on_target(STATED)[0][0].startswith(f"Ledger version {VERSION}.")


@pytest.mark.parametrize("shape", ["1", "4"])
def test_two_sessions_upgrade_a_ledger_one_after_the_other(replication, shape, wait_until):
    """Two that do not share the run lock, as runs of two sources may be."""
    put_ledger(replication, shape)
    before = contents(replication)
    advisory = "select count(*) from pg_locks where not granted and locktype = 'advisory' and database = {}"

    with closing(psycopg2.connect(replication.target_url)) as second:
        second.autocommit = True
        thread = threading.Thread(target=prepare, args=(second,))
        with blocked_migration(replication, wait_until) as errors:
            thread.start()
            wait_until(lambda: replication.on_target(advisory.format(THIS_DATABASE)) == [(1,)])
        thread.join()
        with second.cursor() as cursor:
            cursor.execute(STATED)
            stated = cursor.fetchone()[0]

    assert errors == []
    assert stated.startswith(f"Ledger version {VERSION}.")
    assert {name: len(rows) for name, rows in contents(replication).items()} == {
        name: len(before.get(name, ())) for name in TABLES
    }


@pytest.mark.parametrize("shape", [None, *SHAPES[:1], *SHAPES[-1:]])
def test_concurrent_runs_share_one_migration(replication, shape):
    if shape:
        put_ledger(replication, shape)
        replication.on_target("delete from etl.watermarks")
    if shape == SHAPES[-1]:
        replication.on_target("delete from etl.loads")  # of another source
    replication.on_source("create table items (item_id int primary key); insert into items values (1)")
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "etl", "run"], env=replication.environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    finished = [(process.communicate(timeout=60)[1], process.returncode) for process in begun]

    assert [code for _, code in finished] == [0, 0], finished
    assert replication.on_target("select status from etl.runs order by run_id desc limit 2") == [("succeeded",)] * 2
    assert replication.on_target(STATED)[0][0].startswith(f"Ledger version {VERSION}.")


def test_holder_of_the_warehouse_lock_is_named(replication):
    put_ledger(replication, "1")
    before = state(replication)
    with closing(psycopg2.connect(replication.target_url)) as other, other.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(%s), pg_backend_pid()", (locks.WAREHOUSE_LOCK_KEY,))
        pid = cursor.fetchone()[1]

        with pytest.raises(LockHeldError, match=rf"is upgrading the ledger of this target \(pid {pid}, "):
            prepare(replication.target, 0.05)

        assert state(replication) == before
