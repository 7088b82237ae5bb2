"""Errors are sorted by SQLSTATE: what may pass is tried again, a row to blame is set aside, all else fails at once."""

import dataclasses
import math
from types import SimpleNamespace

import pytest

import etl
from etl.errors import UnavailableError
from tests.integration.etl.faults import make_ledger
from tests.results import pick

MAY_PASS = [
    "08000",  # connection_exception
    "08006",  # connection_failure
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53000",  # insufficient_resources
    "53100",  # disk_full
    "53200",  # out_of_memory
    "53300",  # too_many_connections
    "55P03",  # lock_not_available
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "25P03",  # idle_in_transaction_session_timeout
]
FOR_GOOD = [
    "0A000",  # feature_not_supported
    "25006",  # read_only_sql_transaction
    "28000",  # invalid_authorization_specification
    "42501",  # insufficient_privilege
    "42P01",  # undefined_table
    "55006",  # object_in_use: of the class of 55P03
    "57014",  # query_canceled: of the class of 57P01
    "58030",  # io_error
    "XX000",  # internal_error
]
BLAMES_A_ROW = ["22003", "22P02", "23502", "23505", "23514", "44000", "54000", "P0001", "P0002"]
HINTS = {
    "42501": "grant the missing privilege to the role",
    "53100": "free or add disk space on the target",
    "53300": "raise max_connections of the target",
    "55P03": "raise ETL_LOCK_TIMEOUT_SECONDS",
    "57014": "raise ETL_STATEMENT_TIMEOUT_SECONDS",
}

# A sequence keeps counting when a transaction is rolled back: it shows how often the target was asked.
RAISE_AT_FIRST = """
    create sequence public.times_asked;
    create function public.raise_at_first() returns trigger language plpgsql as $$
    declare
        number bigint;
        state text;
    begin
        if tg_argv[0]::int <> new.item_id then
            return new;
        end if;
        number := nextval('public.times_asked');
        state := (string_to_array(tg_argv[1], ','))[number];
        if state <> '' then
            raise exception 'answer % of the target', number using errcode = state;
        end if;
        return new;
    end $$;
"""
RAISE_AT_FIRST_DDL = """
    create sequence public.times_asked;
    create function public.raise_at_first_ddl() returns event_trigger language plpgsql as $$
    declare
        number bigint := nextval('public.times_asked');
    begin
        if number <= 2 then
            raise exception 'answer % of the target', number using errcode = '40001';
        end if;
    end $$;
    create event trigger answer on ddl_command_end when tag in ('ALTER TABLE')
        execute function public.raise_at_first_ddl();
"""
LEDGER = """
    select status, retries, error, rows_read, rows_inserted, rows_updated, rows_unchanged, rows_rejected
    from etl.table_runs where run_id = %s and table_name = %s
"""


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits between attempts, in seconds, which are recorded instead of spent."""
    found = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=found.append))
    return found


@pytest.fixture
def items(replication):
    """A replicated table of 30 rows, all of which have changed since."""
    make_items(replication, "items", 30)
    replication.run_one("items")
    change(replication, "items")
    return replication


def make_items(replication, table_name, rows):
    replication.on_source(
        f"create table {table_name} (item_id int primary key, note text not null default '', "
        f"updated_at timestamptz not null default now()); create index on {table_name} (updated_at)"
    )
    replication.on_source(f"insert into {table_name} (item_id) select generate_series(1, %s)", rows)


def change(replication, table_name):
    replication.on_source(f"update {table_name} set note = note || '!', updated_at = clock_timestamp()")


def answer(replication, *states, item_id=7):
    """Make the target answer, when it is asked to store this item, with these SQLSTATEs in turn, then let it pass."""
    replication.on_target(RAISE_AT_FIRST)
    replication.on_target(
        "create trigger answer before insert on raw.items for each row "
        f"execute function public.raise_at_first('{item_id}', '{','.join(states)}')"
    )


def times_asked(replication):
    return replication.on_target("select last_value from public.times_asked where is_called")[0][0]


def ledger(replication, run_id, table_name="items"):
    (row,) = replication.on_target(LEDGER, run_id, table_name)
    return SimpleNamespace(
        **dict(
            zip(
                ("status", "retries", "error", "read", "inserted", "updated", "unchanged", "rejected"), row, strict=True
            )
        )
    )


def find_reader(replication):
    """Return the name of the role that `read_as_role` has made."""
    ((name,),) = replication.on_source(
        "select rolname from pg_roles where rolname ^@ ('reader_' || current_database())"
    )
    return name


# ---------------------------------------------------------------------------------------------------------------------
# What may pass


@pytest.mark.parametrize("state", MAY_PASS)
def test_transient_error_is_retried(items, waits, state):
    answer(items, state, state)

    result = items.run("items")

    (table,) = result.tables
    found = ledger(items, result.run_id)
    source, raw = items.rows("items")
    assert table.status == found.status == "succeeded"
    assert table.retries == found.retries == len(waits) == 2
    assert "public.items: the target answered: answer 2 of the target" in found.error
    assert f"(SQLSTATE {state})" in found.error
    assert HINTS.get(state, "") in found.error
    assert pick(found, "read", "inserted", "updated", "unchanged") == (30, 0, 30, 0)
    assert pick(table, "rows_read", "rows_updated") == (30, 30)
    assert source == raw
    assert times_asked(items) == 3


def test_waits_between_attempts_grow_up_to_half_a_minute(items, waits):
    answer(items, *["40001"] * 9)

    table = items.run_one("items", max_attempts=10)

    growing = [wait for wait in waits if wait < 30]
    assert table.retries == len(waits) == 9
    assert min(waits) > 0
    assert max(waits) == waits[-1] == 30
    assert len(growing) >= 6
    assert all(later > earlier for earlier, later in zip(growing, growing[2:], strict=False)), growing


def test_the_last_attempt_fails_the_table_with_the_last_error(items, waits):
    answer(items, *["40001"] * 9)

    result = items.run("items", max_attempts=3)

    (table,) = result.tables
    found = ledger(items, result.run_id)
    source, raw = items.rows("items")
    assert table.status == found.status == "failed"
    assert table.error == found.error
    assert "answer 3 of the target" in table.error
    assert table.retries == found.retries == len(waits) == 2
    assert times_asked(items) == 3
    assert pick(found, "read", "updated") == (0, 0)
    assert [row for row in source if "!" not in row] == []
    assert [row for row in raw if "!" in row] == []


def test_run_after_the_last_attempt_keeps_the_watermark(items):
    answer(items, *["40001"] * 3)
    before = items.on_target("select watermark, points from etl.watermarks")
    items.run("items", max_attempts=3)
    after = items.on_target("select watermark, points from etl.watermarks")

    table = items.run_one("items", max_attempts=3)

    source, raw = items.rows("items")
    assert before == after
    assert pick(table, "rows_read", "rows_updated", "retries") == (30, 30, 0)
    assert source == raw


def test_single_attempt_means_no_retry(items, waits):
    answer(items, "40001")

    (table,) = items.run("items", max_attempts=1).tables

    assert pick(table, "status", "retries") == ("failed", 0)
    assert waits == []
    assert times_asked(items) == 1


def test_every_attempt_but_the_last_announces_a_retry(items, waits):
    answer(items, *["40001"] * 9)

    items.run("items", max_attempts=3)

    said = [event.message for event in items.events if event.kind == "table_retried"]
    assert len(said) == len(waits) == 2
    assert "answer 1" in said[0]
    assert "answer 2" in said[1]


def test_other_tables_continue_and_are_not_repeated(items, waits):
    for name in ("before", "zebras"):  # on either side of items in the order of names
        make_items(items, name, 5)
    answer(items, *["40001"] * 9)

    result = items.run(max_attempts=3)

    statuses = {table.table_name: (table.status, table.retries) for table in result.tables}
    started = [event.table_name for event in items.events if event.kind == "table_started"]
    assert statuses == {"before": ("succeeded", 0), "items": ("failed", 2), "zebras": ("succeeded", 0)}
    assert len(waits) == 2
    for name in ("before", "zebras"):
        found = ledger(items, result.run_id, name)
        assert pick(found, "status", "retries", "error") == ("succeeded", 0, None)
        assert pick(found, "read", "inserted") == (5, 5)
        assert started.count(name) == 1
    assert items.on_target("select status, error from etl.runs where run_id = %s", result.run_id) == [
        ("failed", "failed: items")
    ]


def test_rereading_committed_batches_after_an_error_is_harmless(items):
    items.configure({"defaults": {"batch_rows": 10}})
    answer(items, "40001", item_id=25)

    result = items.run("items")

    (table,) = result.tables
    found = ledger(items, result.run_id)
    source, raw = items.rows("items")
    assert pick(found, "status", "retries") == ("succeeded", 1)
    assert pick(found, "read", "inserted", "updated", "unchanged") == (50, 0, 30, 20)
    assert pick(table, "rows_read", "rows_updated", "rows_unchanged") == (50, 30, 20)
    assert source == raw


def test_error_storing_the_watermark_rolls_back_the_rows(items):
    items.on_target(RAISE_AT_FIRST.replace("new.item_id", "0"))
    items.on_target(
        "create trigger answer before insert on etl.watermarks for each row "
        "execute function public.raise_at_first('0', '40001,40P01')"
    )

    result = items.run("items")

    (table,) = result.tables
    found = ledger(items, result.run_id)
    assert pick(found, "status", "retries") == ("succeeded", 2)
    assert pick(found, "read", "updated") == (30, 30)
    assert pick(table, "rows_read", "rows_updated") == (30, 30)
    assert items.on_target("select run_id from etl.watermarks") == [(result.run_id,)]


def test_ledger_error_is_retried(items, waits):
    items.on_target(RAISE_AT_FIRST.replace("new.item_id", "0"))
    items.on_target(
        "create trigger answer before insert on etl.table_runs for each row "
        "execute function public.raise_at_first('0', '40001,40001,40001')"
    )

    result = items.run("items")

    source, raw = items.rows("items")
    assert ledger(items, result.run_id).status == "succeeded"
    assert 1 <= len(waits) <= 3
    assert times_asked(items) > 3
    assert source == raw


@pytest.mark.parametrize("load_range_blocks", [1, 131_072], ids=["in ranges", "in one transaction"])
def test_first_load_failing_at_its_end_is_retried_counting_once(replication, waits, load_range_blocks):
    make_ledger(replication)
    make_items(replication, "items", 2000)
    replication.on_target(RAISE_AT_FIRST_DDL)

    result = replication.run("items", load_range_blocks=load_range_blocks)

    (table,) = result.tables
    found = ledger(replication, result.run_id)
    source, raw = replication.rows("items")
    assert table.status == found.status == "succeeded"
    assert table.retries == found.retries == len(waits) == 2
    assert (found.read, found.inserted) == (table.rows_read, table.rows_inserted) == (2000, 2000)
    assert source == raw
    assert replication.on_target("select count(*) from pg_class where relname like '%loading%'") == [(0,)]


@pytest.mark.parametrize("kind", ["table_started", "batch_committed"])
def test_tables_with_a_lost_snapshot_are_retried(items, kind):
    """The session that holds the snapshot is terminated before the first table is read, or before the second."""
    make_items(items, "others", 5)
    terminated = []

    def terminate_holder(event):
        if event.kind == kind and not terminated:
            terminated.extend(
                items.on_source(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                    "where application_name = 'tidemark' and datname = current_database() "
                    "and state = 'idle in transaction' order by backend_start limit 1"
                )
            )

    result = etl.run(dataclasses.replace(items.settings, parallel_tables=1), (), observe=terminate_holder)

    source, raw = items.rows("items")
    assert terminated == [(True,)]
    assert [(table.table_name, table.status, table.error) for table in result.tables] == [
        ("items", "succeeded", None),
        ("others", "succeeded", None),
    ]
    assert source == raw


def test_error_outside_tables_is_retried_and_counted_for_each(items, read_as_role, waits):
    """The role may connect no more once the first snapshot has served one batch, and again after that attempt."""
    items.configure({"defaults": {"batch_rows": 10}})
    read_as_role(False)
    name = find_reader(items)
    notices = []

    def forbid_then_allow(event):
        if event.kind == "batch_committed" and len(notices) == 1:
            items.on_source(f"alter role {name} connection limit 0")
        if event.kind == "notice":
            notices.append(event.message)
            items.on_source(f"alter role {name} connection limit -1")

    settings = dataclasses.replace(items.settings, max_snapshot_seconds=0)
    result = etl.run(settings, ("items",), observe=forbid_then_allow)

    (table,) = result.tables
    found = ledger(items, result.run_id)
    assert len(notices) == 2
    assert "attempt 1 failed, retrying: cannot connect to the source" in notices[1]
    assert len(waits) == 3  # two within the attempt, for the connection
    assert table.status == found.status == "succeeded"
    assert {"result": table.retries, "ledger": found.retries} == {"result": 1, "ledger": 1}
    assert "too many connections for role" in found.error


# ---------------------------------------------------------------------------------------------------------------------
# What does not pass


@pytest.mark.parametrize("state", FOR_GOOD)
def test_any_other_error_fails_the_table_at_once(items, waits, state):
    answer(items, *[state] * 9)
    watermark = items.on_target("select watermark, points, run_id from etl.watermarks")

    result = items.run("items")

    (table,) = result.tables
    found = ledger(items, result.run_id)
    _, raw = items.rows("items")
    assert table.status == found.status == "failed"
    assert {"result": table.retries, "ledger": found.retries} == {"result": 0, "ledger": 0}
    assert waits == []
    assert times_asked(items) == 1
    assert "answer 1 of the target" in found.error
    assert f"(SQLSTATE {state})" in found.error
    assert HINTS.get(state, "") in found.error
    assert pick(found, "read", "updated", "rejected") == (0, 0, 0)
    assert [row for row in raw if "!" in row] == []
    assert items.on_target("select watermark, points, run_id from etl.watermarks") == watermark
    assert items.on_target("select count(*) from etl.rejected_rows") == [(0,)]


def test_permanent_error_after_a_transient_one_ends_the_attempts(items, waits):
    answer(items, "40001", "42501", "40001")

    result = items.run("items")

    found = ledger(items, result.run_id)
    assert pick(found, "status", "retries") == ("failed", 1)
    assert len(waits) == 1
    assert "answer 2 of the target" in found.error
    assert times_asked(items) == 2


# ---------------------------------------------------------------------------------------------------------------------
# What blames a row


@pytest.mark.parametrize("state", BLAMES_A_ROW)
def test_faulty_row_is_rejected_without_another_attempt(items, waits, state):
    answer(items, *[state] * 99)

    result = items.run("items")

    (table,) = result.tables
    found = ledger(items, result.run_id)
    rejected = items.on_target("select key, sqlstate, message from etl.rejected_rows")
    source, raw = items.rows("items")
    assert table.status == found.status == "succeeded"
    assert table.retries == 0
    assert pick(found, "retries", "error") == (0, None)
    assert waits == []
    assert pick(found, "read", "updated", "unchanged", "rejected") == (30, 29, 0, 1)
    assert [row[:2] for row in rejected] == [('["7"]', state)]
    assert "of the target" in rejected[0][2]
    assert len(set(source) & set(raw)) == 29


def test_transient_row_error_rejects_no_row(items, waits):
    answer(items, "P0001")

    table = items.run_one("items")

    source, raw = items.rows("items")
    assert pick(table, "rows_updated", "rows_rejected", "retries") == (30, 0, 0)
    assert waits == []
    assert source == raw


def test_transient_error_while_rejecting_rows_is_retried(items, waits):
    """The search for the rejected row is cut short, and starts again."""
    halvings = math.ceil(math.log2(items.settings.tables.defaults.batch_rows))
    answer(items, "P0001", "P0001", "40001", *["P0001"] * 2 * halvings)

    result = items.run("items")

    found = ledger(items, result.run_id)
    assert pick(found, "status", "retries") == ("succeeded", 1)
    assert len(waits) == 1
    assert pick(found, "read", "updated", "rejected") == (30, 29, 1)
    assert items.on_target("select key from etl.rejected_rows") == [('["7"]',)]


# ---------------------------------------------------------------------------------------------------------------------
# What the source answers


@pytest.fixture
def reader_name(items, read_as_role):
    """The role that reads the items."""
    read_as_role(True)
    return find_reader(items)


def test_privilege_lost_during_a_run_fails_its_table_at_once(items, reader_name, waits):
    make_items(items, "others", 5)

    def revoke(event):
        items.events.append(event)
        if event.kind == "table_started" and event.table_name == "items":
            items.on_source(f"revoke select on items from {reader_name}")

    result = etl.run(items.settings, (), observe=revoke)

    found = ledger(items, result.run_id)
    _, raw = items.rows("items")
    assert pick(found, "status", "retries") == ("failed", 0)
    assert waits == []
    assert found.error == (
        "public.items: the source answered: permission denied for table items (SQLSTATE 42501): "
        "grant the missing privilege to the role (docs/configuration.md)"
    )
    assert len(raw) == 30
    assert ledger(items, result.run_id, "others").status == "succeeded"


def test_missing_source_privilege_stops_the_run_unrecorded(items, reader_name):
    items.on_source("revoke execute on function pg_catalog.pg_control_system() from public")

    with pytest.raises(UnavailableError, match=r"permission denied for function pg_control_system.*SQLSTATE 42501"):
        items.run()

    assert reader_name
    assert items.on_target("select count(*) from etl.runs") == [(1,)]


POLICIES = {
    "no policy, which hides all": "",
    "a policy that hides some": "create policy partly on items using (item_id > 10)",
    "a policy that hides none": "create policy wholly on items using (true)",
}


@pytest.mark.parametrize("watermark", ["updated_at", "item_id"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_row_policy_fails_its_table_and_loses_no_row(items, reader_name, waits, policy, watermark):
    items.configure({"tables": {"items": {"watermark": watermark, "lookback_rows": 1}, "others": {}}})
    make_items(items, "others", 5)
    items.on_source(f"alter table items enable row level security; {policy}")

    result = items.run()

    found = ledger(items, result.run_id)
    _, raw = items.rows("items")
    assert pick(found, "status", "retries") == ("failed", 0)
    assert waits == []
    assert 'affected by row-level security policy for table "items" (SQLSTATE 42501)' in found.error
    assert found.error.startswith("public.items: the source answered: ")
    assert len(raw) == 30
    assert ledger(items, result.run_id, "others").status == "succeeded"
    assert reader_name


def test_row_policy_fails_a_first_load_too(replication, read_as_role):
    make_items(replication, "items", 30)
    read_as_role(False)
    replication.on_source(
        "alter table items enable row level security; create policy partly on items using (item_id > 9)"
    )

    (table,) = replication.run().tables

    assert table.status == "failed"
    assert "row-level security" in table.error
    assert replication.on_target("select to_regclass('raw.items')") == [(None,)]


def test_advice_about_a_row_policy_fixes_the_failure(items, reader_name):
    items.on_source("alter table items enable row level security; create policy partly on items using (item_id > 10)")
    (failed,) = items.run("items").tables
    items.on_source(f"alter role {reader_name} bypassrls")

    table = items.run_one("items")

    source, raw = items.rows("items")
    assert table.rows_updated == 30
    assert source == raw
    assert "bypassrls" in failed.error
