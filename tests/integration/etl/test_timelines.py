"""What raw holds of a history that the source has lost: after a failover, and after a backup was restored."""

import itertools
from dataclasses import replace

import pytest

import etl
from etl.commands.status import read_status
from etl.errors import TableError
from etl.model import RunOptions
from etl.replicate import net
from tests.integration.etl.clusters import SERVER_SETTINGS, copy_running, copy_stopped, serve, serve_new, upgrade
from tests.integration.etl.faults import create_database

_numbers = itertools.count(1)
NEXT_MAJOR = 18
TABLES = ("events", "items", "tags")
# A watermark of each kind, and none. All rows have the same stamp, so that a watermark shows nothing of what was lost.
MAKE_TABLES = """
    create table items (item_id int primary key, note text, updated_at timestamptz not null default '2026-01-02');
    create index on items (updated_at);
    create table events (event_id int generated always as identity primary key, note text);
    create table tags (tag_id int primary key, note text);
    insert into items select n, 'first' from generate_series(1, 100) as n;
    insert into events (note) select 'first' from generate_series(1, 100);
    insert into tags select n, 'first' from generate_series(1, 100) as n
"""
WRITE = """
    insert into items select n, '{note}' from generate_series(101, 139) as n;
    insert into events (note) select '{note}' from generate_series(1, 39);
    insert into tags select n, '{note}' from generate_series(101, 139) as n;
    update items set note = '{note}' where item_id = {changed};
    update tags set note = '{note}' where tag_id = {changed};
    delete from items where item_id = {deleted};
    delete from tags where tag_id = {deleted}
"""
PASS_TRANSACTIONS = """
    do $$ begin for n in 1..200 loop perform pg_current_xact_id(); commit; end loop; end $$
"""
CONFIG = {"tables": {"events": {"watermark": "event_id"}}}
LEDGER = "select table_name, timeline, next_xid from etl.watermarks order by 1"


@pytest.fixture(scope="module")
def primary(servers_home, free_port):
    with serve_new(servers_home, "former", free_port()) as server:
        yield server


@pytest.fixture
def replicated(primary, target_url, replicate_between):
    """Three tables on the primary that were replicated."""
    replication = replicate_between(create_database(primary), target_url)
    replication.configure(CONFIG)
    replication.on_source(MAKE_TABLES)
    run(replication)
    return replication


def from_server(server, replication, replicate_between):
    """Return the replication of the same database of another server."""
    database = replication.source_url.rpartition("/")[2].partition("?")[0]
    found = replicate_between(server.url(database), replication.target_url)
    found.settings = replace(replication.settings, source_url=found.settings.source_url)
    return found


def name_copy():
    return f"copy_{next(_numbers)}"


def run(replication, **options):
    result = replication.run(options=RunOptions(**options))
    assert [table.error for table in result.tables] == [None] * len(TABLES)
    return result


def errors_of(replication, *, is_repair=None):
    """Return the errors with which a run, or a comparison, stops the tables."""
    if is_repair is None:
        return [table.error for table in replication.run().tables]
    return [verdict.error for verdict in etl.verify(replication.settings, is_repair=is_repair)]


def notices_of(replication):
    return [event.message for event in replication.events if event.kind == "notice"]


def content(replication, side):
    """Return the rows of all three tables on one side, without tombstones."""
    query = {"source": replication.on_source, "raw": replication.on_target}[side]
    schema, condition = {"source": ("public", "true"), "raw": ("raw", "_etl_deleted_at is null")}[side]
    columns = {"events": "event_id, note", "items": "item_id, note, updated_at::text", "tags": "tag_id, note"}
    return {name: query(f"select {columns[name]} from {schema}.{name} where {condition} order by 1") for name in TABLES}


def assert_equal(replication):
    assert content(replication, "raw") == content(replication, "source")


# ---------------------------------------------------------------------------------------------------------------------
# A promoted standby


@pytest.fixture
def promoted(primary, replicated, replicate_between, free_port):
    """The replication from a promoted standby that had not received what its primary wrote last, and raw has that."""
    settings = {**SERVER_SETTINGS, "primary_conninfo": ""}
    standby = replace(copy_running(primary, name_copy(), free_port(), "-R"), settings=settings)
    replicated.on_source(WRITE.format(note="lost", changed=7, deleted=9))
    run(replicated)
    with serve(standby) as server:
        replication = from_server(server, replicated, replicate_between)
        assert replication.on_source("select pg_promote()") == [(True,)]
        replication.on_source(WRITE.format(note="kept", changed=8, deleted=10))
        yield replication


def test_promoted_standby_is_compared_in_the_run(promoted):
    result = run(promoted)

    assert_equal(promoted)
    assert promoted.on_target("select distinct timeline from etl.watermarks") == [(2,)]
    assert sum(table.rows_read for table in result.tables) < 3 * 39 + 139 + 20
    said = [message for message in notices_of(promoted) if "timeline 1 of the source has become timeline 2" in message]
    assert len(said) == 2 * len(TABLES)
    assert any("public.items: " in message and "differed and were repaired" in message for message in said)
    assert all("timeline 2: all rows were compared" in each.source_change for each in read_status(promoted.settings))
    promoted.events.clear()
    run(promoted)
    assert "timeline" not in " ".join(notices_of(promoted))


def test_comparison_before_the_run_shows_what_was_lost(promoted):
    verdicts = etl.verify(promoted.settings, observe=promoted.events.append)

    assert {verdict.is_equal for verdict in verdicts} == {False}
    assert [verdict.error for verdict in verdicts] == [None] * len(TABLES)
    assert all("the next run compares all columns" in message for message in notices_of(promoted))
    assert len(notices_of(promoted)) == len(TABLES)


def test_row_written_late_after_a_promotion_arrives(promoted):
    """Its transaction began before what raw holds of the lost history was stamped."""
    with promoted.open_source() as writer, writer.cursor() as cursor:
        cursor.execute("insert into items values (200, 'late', '2026-01-01')")
        run(promoted)
        writer.commit()
    writer.close()
    run(promoted)

    assert_equal(promoted)


def test_comparison_that_fails_is_done_again(promoted, monkeypatch):
    before = promoted.on_target(LEDGER)

    def fail(*_, **__):
        raise TableError("killed")

    with monkeypatch.context() as patching:
        patching.setattr(net, "reconcile", fail)
        failed = promoted.run()
    after = promoted.on_target(LEDGER)
    run(promoted)

    assert {table.error for table in failed.tables} == {"killed"}
    assert after == before
    assert_equal(promoted)


def test_deleted_rows_are_kept_where_deletes_are_ignored(promoted):
    promoted.configure({"defaults": {"deletes": "none"}, **CONFIG})

    run(promoted)

    source, raw = (content(promoted, side)["items"] for side in ("source", "raw"))
    assert [row for row in raw if row[0] != 10] == source
    assert [row[:2] for row in raw if row[0] == 10] == [(10, "first")]


def test_comparison_stops_at_too_many_deletes(promoted):
    promoted.on_source("delete from items where item_id > 50")

    (result,) = promoted.run("items").tables
    (confirmed,) = promoted.run("items", options=RunOptions(allow_deletes=True)).tables

    assert "more than max_delete_fraction" in result.error
    assert confirmed.error is None
    assert content(promoted, "raw")["items"] == content(promoted, "source")["items"]


def test_former_primary_is_older_after_a_failover(promoted, replicated):
    run(promoted)
    before = content(promoted, "raw")

    errors = errors_of(replicated)

    assert all("the source is older than at the last run (its timeline was 2, now 1)" in error for error in errors)
    assert content(promoted, "raw") == before


# ---------------------------------------------------------------------------------------------------------------------
# A copy of the data folder that was put back: the timeline stays


@pytest.fixture
def restored(primary, target_url, replicate_between, free_port):
    """The replication from a copy of a stopped primary, and the rows that raw has of what its primary wrote later."""
    former = replicate_between(create_database(primary), target_url)
    former.configure(CONFIG)
    former.on_source(MAKE_TABLES)
    run(former)
    former.source.close()
    copy = copy_stopped(primary, name_copy(), free_port())
    former = from_server(primary, former, replicate_between)
    former.on_source(PASS_TRANSACTIONS)
    former.on_source(WRITE.format(note="lost", changed=7, deleted=9))
    run(former)
    with serve(copy) as server:
        replication = from_server(server, former, replicate_between)
        replication.on_source(WRITE.format(note="kept", changed=8, deleted=10))
        yield replication


@pytest.mark.parametrize("is_repair", [None, True], ids=["run", "repair"])
def test_older_source_is_refused_until_it_is_settled(restored, is_repair):
    before = content(restored, "raw")

    older = [errors_of(restored, is_repair=each) for each in (False, is_repair)]
    restored.on_source(PASS_TRANSACTIONS)
    restored.on_source(PASS_TRANSACTIONS)
    later = [errors_of(restored, is_repair=each) for each in (None, False, True)]
    status = read_status(restored.settings)
    differing = etl.verify(restored.settings, is_adoption=True)
    unchanged = content(restored, "raw")
    settled = etl.verify(restored.settings, is_adoption=True, is_repair=True)
    run(restored)

    for error in itertools.chain(*older, *later):
        assert "the source is older than at the last run (its next transaction id was" in error
        assert "`etl reset" in error
        assert "`etl verify --adopt-source" in error
    assert all("the source is older" in each.refusal for each in status)
    assert [verdict.is_equal for verdict in differing] == [False] * len(TABLES)
    assert unchanged == before
    assert [(verdict.is_equal, verdict.is_adopted) for verdict in settled] == [(True, True)] * len(TABLES)
    assert_equal(restored)


def test_comparison_with_an_older_copy_stops_no_later_run(restored, primary, replicate_between):
    """It may be a copy for tests: only what a run finds is stored."""
    errors = errors_of(restored, is_repair=False)

    run(from_server(primary, restored, replicate_between))

    assert all("the source is older" in error for error in errors)


def test_reset_settles_an_older_source(restored):
    errors_of(restored)

    run(restored, full_refresh=True)
    run(restored)

    assert_equal(restored)
    assert {each.refusal for each in read_status(restored.settings)} == {None}


def test_restored_copy_that_no_run_saw_older_is_compared(restored):
    """Only the start of the server shows it."""
    restored.on_source(PASS_TRANSACTIONS)
    restored.on_source(PASS_TRANSACTIONS)

    run(restored)

    assert_equal(restored)


# ---------------------------------------------------------------------------------------------------------------------
# An upgrade: the rows, their transaction ids and the timeline stay, and the system identifier changes


def test_upgraded_server_is_adopted_without_loading_anything(primary, target_url, replicate_between, free_port):
    former = replicate_between(create_database(primary), target_url)
    former.configure(CONFIG)
    former.on_source(MAKE_TABLES)
    run(former)
    former.source.close()
    copy = copy_stopped(primary, name_copy(), free_port())
    versions = (
        "select 'items', item_id, xmin::text from raw.items union select 'tags', tag_id, xmin::text from raw.tags"
    )
    before = sorted(former.on_target(versions))
    with serve(upgrade(copy, NEXT_MAJOR, name_copy(), free_port())) as server:
        upgraded = from_server(server, former, replicate_between)

        refused = errors_of(upgraded)
        adopted = etl.verify(upgraded.settings, is_adoption=True)
        result = run(upgraded)
        after = sorted(upgraded.on_target(versions))
        upgraded.on_source(WRITE.format(note="new", changed=7, deleted=9))
        upgraded.on_source("update items set updated_at = now() where note = 'new'")
        run(upgraded, reconcile=True)

        assert_equal(upgraded)
    copy.remove()
    assert all("the source is now" in error for error in refused)
    assert [(verdict.is_equal, verdict.is_adopted) for verdict in adopted] == [(True, True)] * len(TABLES)
    assert sum(table.rows_inserted + table.rows_updated for table in result.tables) == 0
    assert after == before


# ---------------------------------------------------------------------------------------------------------------------
# A standby that lags


def test_standby_that_lagged_is_compared_once_it_has_caught_up(
    primary, replicated, replicate_between, free_port, wait_until
):
    replicated.configure({"defaults": {"lookback_seconds": 60, "lookback_rows": 10}, **CONFIG})
    with serve(copy_running(primary, name_copy(), free_port(), "-R")) as server:
        standby = from_server(server, replicated, replicate_between)
        standby.on_source("select pg_wal_replay_pause()")
        wait_until(lambda: standby.on_source("select pg_get_wal_replay_pause_state()") == [("paused",)])
        replicated.on_source(WRITE.format(note="later", changed=7, deleted=9))
        run(replicated)
        before = content(replicated, "raw")

        errors = errors_of(standby)
        unchanged = content(replicated, "raw")
        replicated.on_target("update raw.items set note = 'wrong' where item_id = 5")  # as if it had been lost
        ((position,),) = replicated.on_source("select pg_current_wal_lsn()")
        standby.on_source("select pg_wal_replay_resume()")
        wait_until(lambda: standby.on_source("select pg_last_wal_replay_lsn() >= %s::pg_lsn", position) == [(True,)])
        run(standby)

    assert all("the source is older than at the last run" in error for error in errors)
    assert unchanged == before
    assert content(replicated, "raw") == content(replicated, "source")
    run(replicated)  # nothing refuses the primary
