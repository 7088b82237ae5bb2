"""The statements of docs/operations.md, pasted into psql by an owner who is no superuser, are all that runs need."""

import psycopg2
import pytest

from deploy.local.servers import SUPERUSER
from tests.integration.operations.conftest import blocks, open_side

HIDDEN = ("raw", "etl", "staging", "intermediate", "snapshots")
RELATIONS = """
    select format('%I.%I', n.nspname, c.relname)
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind in ('r', 'v', 'm') and n.nspname = any ('{{{}}}')
    order by 1
"""


def relations(side, *schemas):
    return [name for (name,) in side.force(RELATIONS.format(",".join(schemas)))]


def assert_refused(side, role, statement):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        side.query(statement, role)


def test_owner_running_the_blocks_is_not_a_superuser(source, target):
    for side in (source, target):
        assert side.query("select rolsuper from pg_roles where rolname = current_user")[1] == [(False,)]


def test_a_superuser_may_run_the_same_blocks(servers_home, free_port):
    with open_side(servers_home, "operated-by-superuser", 18, free_port()) as side:
        for block in blocks("Source") + blocks("Target"):
            side.paste(block, SUPERUSER)

        assert side.force("select pg_has_role('replicator', 'pg_read_all_stats', 'usage')") == [(True,)]
        assert side.query("set role transformer; select current_user", "loader")[1] == [("transformer",)]
        assert side.query("select has_schema_privilege('marts', 'usage')", "analyst")[1] == [(True,)]
        assert side.query("select has_schema_privilege('raw', 'usage')", "analyst")[1] == [(False,)]


def test_runs_as_these_roles_copy_every_row(shop):
    finished = shop.succeed("verify")

    assert finished.stdout.count("equal") == 8
    assert "pg_read_all_stats" not in finished.stderr


@pytest.fixture(scope="module")
def stores(shop, source):
    """The name of a table that was made after the grants, of two rows."""
    source.query("create table stores (store_id serial primary key, name text, updated_at timestamptz default now())")
    source.query("insert into stores (name) values ('first'), ('second')")
    shop.succeed("extract", "stores")
    yield "stores"
    source.query("drop table stores")


def test_table_created_later_is_replicated_and_readable(stores, source, target):
    _, rows = target.query(f"select name from raw.{stores} order by store_id", "transformer")

    assert ("first",) in rows
    assert source.query(f"select last_value from {stores}_store_id_seq", "replicator")[1] == [(2,)]


def test_type_widened_below_views_is_applied(shop, source, target):
    source.query("alter table campaigns alter column budget type numeric(20, 2)")
    finished = shop.succeed("extract", "campaigns")

    assert "from numeric(12,2) to numeric(20,2)" in finished.stderr
    assert target.query("select count(*) > 0 from staging.stg_campaigns", "transformer")[1] == [(True,)]


def test_deleted_newest_rows_are_not_taken_for_a_restart(shop, source):
    source.query("delete from events where event_id > (select max(event_id) - 3 from events)")

    finished = shop.succeed("extract", "events")

    assert "1 without changes" in finished.stdout
    assert finished.stderr == ""


def test_loader_sees_what_dbt_has_read_and_purges_tombstones(shop, stores, source, target, tmp_path, monkeypatch):
    source.query(f"delete from {stores} where store_id = 2")
    shop.succeed("extract", stores, "--reconcile", "--allow-deletes")
    _, tombstones = target.query(f"select store_id from raw.{stores} where _etl_deleted_at is not null", "loader")
    shop.succeed("dbt-run")
    (tmp_path / "tables.yml").write_text("defaults: {tombstone_days: 0}\n")
    monkeypatch.setenv("ETL_TABLES", str(tmp_path / "tables.yml"))
    shop.succeed("extract", stores, "--reconcile")

    assert tombstones == [(2,)]
    assert target.query(f"select store_id from raw.{stores}", "loader")[1] == [(1,)]


@pytest.mark.usefixtures("shop")
def test_an_analyst_reads_every_mart_and_nothing_else(target):
    marts, hidden = relations(target, "marts"), relations(target, *HIDDEN)

    assert len(marts) > 8
    assert {name.partition(".")[0] for name in hidden} == set(HIDDEN)
    for name in marts:
        target.query(f"select * from {name} limit 1", "analyst")
    for name in hidden:
        assert_refused(target, "analyst", f"select * from {name} limit 1")


@pytest.mark.usefixtures("shop")
def test_monitor_reads_no_replicated_row(target):
    for name in relations(target, "raw", "staging", "snapshots", "marts"):
        assert_refused(target, "monitor", f"select * from {name} limit 1")
    for name in relations(target, "intermediate"):
        if name != "intermediate.dbt_builds":
            assert_refused(target, "monitor", f"select * from {name} limit 1")
    assert_refused(target, "monitor", "select row_text from etl.rejected_rows")
    assert_refused(target, "monitor", "select key from etl.rejected_rows")


def test_replicator_sessions_are_read_only_by_default(source):
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        source.query("create temporary table mine (a int)", "replicator")


@pytest.mark.parametrize(
    ("side", "role", "statement"),
    [
        ("source", "replicator", "set transaction read write; delete from orders"),
        ("source", "replicator", "set transaction read write; alter sequence orders_order_id_seq restart"),
        ("source", "replicator", "set transaction read write; create table public.mine (a int)"),
        ("target", "loader", "select * from marts.fct_orders"),
        ("target", "loader", "create table marts.mine (a int)"),
        ("target", "loader", "create table public.mine (a int)"),
        ("target", "transformer", "update raw.orders set status = 'paid'"),
        ("target", "transformer", "delete from etl.runs"),
        ("target", "transformer", "set role loader"),
        ("target", "analyst", "delete from marts.fct_orders"),
        ("target", "analyst", "create temporary table mine (a int)"),
        ("target", "analyst", "create table public.mine (a int)"),
        ("target", "analyst", "set role transformer"),
        ("target", "monitor", "update etl.runs set status = 'failed'"),
        ("target", "monitor", "create temporary table mine (a int)"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_forbidden_actions_of_a_role_fail(request, side, role, statement):
    assert_refused(request.getfixturevalue(side), role, statement)


def test_query_shows_whether_statistics_can_be_granted(source, target):
    (query,) = blocks("Where you are not a superuser")

    assert source.paste(query).splitlines() == ["may_grant_pg_read_all_stats,may_grant_pg_monitor", "t,f"]
    assert target.paste(query, "analyst").splitlines()[1] == "f,f"
    assert_refused(source, "replicator", "set transaction read write; grant pg_read_all_stats to owner")


def test_pg_monitor_replaces_pg_read_all_stats(shop, stores, source):
    source.query("revoke pg_read_all_stats from replicator")
    without = shop.succeed("extract", stores).stderr
    source.force("grant pg_monitor to replicator")
    with_monitor = shop.succeed("extract", stores).stderr
    source.force("revoke pg_monitor from replicator")
    source.query("grant pg_read_all_stats to replicator")

    assert "lacks pg_read_all_stats" in without
    assert "pg_read_all_stats" not in with_monitor
