"""Bad input: one message that says what to do, the right exit code, no traceback, nothing written."""

import json
import re

import pytest


def assert_refused(finished, exit_code, *parts):
    assert finished.returncode == exit_code, finished.stderr
    assert "Traceback" not in finished.stderr
    for part in parts:
        assert part in finished.stderr


@pytest.mark.parametrize("side", ["SOURCE", "TARGET"])
def test_unreachable_url_exits_3(orders, side):
    finished = orders.command("run", **{f"{side}_DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/nowhere"})

    assert_refused(finished, 3, "127.0.0.1:1/nowhere", f"{side}_DATABASE_URL is right")
    assert "secret" not in finished.stderr
    assert orders.on_target("select count(*) from pg_class where relnamespace = to_regnamespace('raw')") == [(0,)]


def test_missing_database_exits_3_at_once(orders):
    finished = orders.command("run", SOURCE_DATABASE_URL=re.sub(r"/[^/]*$", "/nowhere", orders.source_url))

    assert_refused(finished, 3, 'database "nowhere" does not exist')


def test_invalid_url_exits_2_without_showing_its_secret(orders):
    finished = orders.command("run", SOURCE_DATABASE_URL="postgresql://u:%zzsecret@host/db", TARGET_DATABASE_URL="")

    assert_refused(finished, 2, "SOURCE_DATABASE_URL is not a libpq URL", "TARGET_DATABASE_URL is not set")
    assert "secret" not in finished.stderr


@pytest.mark.parametrize("side", ["source", "target"])
def test_server_without_required_tls_exits_3_at_once(replication, embedded_source_server, side):
    url = embedded_source_server.url() + "?sslmode=require"

    finished = replication.command("run", **{f"{side.upper()}_DATABASE_URL": url})

    assert_refused(
        finished, 3, f"cannot connect to the {side} at 127.0.0.1:", "does not support SSL", "set ssl = on there"
    )


def test_unknown_table_name_exits_2(orders):
    finished = orders.command("run", "ordres")

    assert_refused(finished, 2, "found ordres", "known names: orders")
    assert orders.on_target("select to_regclass('raw.orders')") == [(None,)]


def test_missing_table_fails_and_the_others_succeed(orders):
    finished = orders.command("run", ETL_TABLES=str(orders.write_tables("tables: {payments: {}}\n")))

    assert_refused(finished, 1, "expected a table public.payments on the source, found none", "tables.yml")
    assert orders.on_target("select count(*) from raw.orders") == [(1000,)]


def test_table_without_key_fails_with_the_statement_to_fix_it(orders):
    orders.on_source("create table keyless (a int)")

    finished = orders.command("run", ETL_TABLES=str(orders.write_tables("tables: {keyless: {watermark: null}}\n")))

    assert_refused(finished, 1, "public.keyless has no primary key", "alter table public.keyless add primary key")
    assert orders.on_target("select count(*) from raw.orders") == [(1000,)]


def test_view_on_the_command_line_fails_with_the_reason(orders):
    orders.on_source("create view recent as select * from orders")

    assert_refused(orders.command("run", "recent"), 1, "public.recent is a view: only tables are replicated")


def test_three_tables_yml_errors_are_reported_together(orders):
    path = orders.write_tables(
        "defaults: {batch_row: 10}\ntables:\n  orders: {deletes: sometimes}\n  events: {batch_rows: -1}\n"
    )

    finished = orders.command("run", ETL_TABLES=str(path))

    assert_refused(
        finished,
        2,
        "did you mean 'batch_rows'?",
        "tables.orders.deletes: expected reconcile or none, found 'sometimes'",
        "tables.events.batch_rows: expected a whole number of 1 or more, found -1",
    )
    assert len(finished.stderr.splitlines()) == 3


def test_cached_sequence_is_rejected_as_watermark(replication):
    replication.on_source("create table events (event_id bigint generated always as identity (cache 20) primary key)")

    finished = replication.command(
        "run", ETL_TABLES=str(replication.write_tables("tables: {events: {watermark: event_id}}\n"))
    )

    assert_refused(finished, 1, "a sequence with cache 20", "cache 1")


def test_a_watermark_beyond_the_source_stops_the_table(replication):
    replication.on_source("create table events (event_id bigint generated always as identity primary key)")
    replication.on_source("insert into events select from generate_series(1, 5)")
    replication.configure({"tables": {"events": {"watermark": "event_id"}}})
    replication.run_one("events")
    replication.on_source("truncate events restart identity; insert into events default values")

    (result,) = replication.run("events").tables

    assert result.status == "failed"
    assert "the watermark is 5, but the source has max(event_id) = 1" in str(result.error)


def test_unreadable_table_is_skipped_and_the_grant_is_named(orders):
    orders.on_source("drop role if exists reader; create role reader login password 'r'")
    try:
        orders.on_source("grant usage on schema public to reader")
        url = re.sub(r"//[^@]*@", "//reader:r@", orders.source_url)

        finished = orders.command("run", "orders", SOURCE_DATABASE_URL=url)
    finally:
        orders.on_source("drop owned by reader; drop role reader")

    assert_refused(finished, 1, "grant select on public.orders")


def test_verify_and_status_ask_for_a_first_run(orders):
    assert_refused(orders.command("verify"), 3, "run `etl run` first")
    assert_refused(orders.command("status"), 3, "run `etl run` first")


def test_json_results_are_one_document_and_json_logs_are_lines(orders):
    import json

    finished = orders.command("run", "--json", "--log-format", "json")

    result = json.loads(finished.stdout)
    events = [json.loads(line)["event"] for line in finished.stderr.splitlines()]
    assert result["tables"][0]["rows_inserted"] == 1000
    assert events == ["table_started", "batch_committed", "table_finished"]


def test_tables_without_changes_are_counted_and_not_listed(replication):
    replication.on_source("".join(f"create table {name} (a int primary key);" for name in ("one", "two", "three")))
    replication.on_source("insert into one values (1); insert into two values (1)")
    first = replication.command("run")
    replication.on_source("insert into two values (2)")

    second = replication.command("run")

    assert re.fullmatch(r"run 1: 3 tables, 1 without changes in [0-9.]+ s\n", first.stdout)
    assert re.fullmatch(r"run 2: 3 tables, 2 without changes in [0-9.]+ s\n", second.stdout)
    listed = [line.partition(":")[0] for line in second.stderr.splitlines() if " rows read, " in line]
    assert listed == ["two"]


def test_status_without_the_source_shows_what_the_ledger_knows(orders, free_port):
    orders.run()
    away = f"postgresql://nobody:verysecret@127.0.0.1:{free_port()}/shop"
    shown = orders.command("status", SOURCE_DATABASE_URL=away)
    listed = orders.command("status", "--json", SOURCE_DATABASE_URL=away)

    assert (shown.returncode, listed.returncode) == (3, 3)
    assert "etl: lag, age of scans and holders are unknown: cannot connect to the source at 127.0.0.1:" in shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("orders")]
    assert line.split()[1] == "succeeded"
    assert "updated_at >= 20" in line
    assert line.split()[-3:] == ["unknown", "unknown", "unknown"]
    (table,) = json.loads(listed.stdout)
    assert (table["status"], table["lag_seconds"]) == ("succeeded", None)
    assert "cannot connect" in table["source_error"]
    assert "verysecret" not in shown.stdout + shown.stderr + listed.stdout
