"""The whole way as `make` runs it, in a copy of the checkout with servers of its own."""

import psycopg2
import pytest

from source_db.schema import TABLES
from tests.integration.dbt.built_shop import WITHOUT_TESTS, WITHOUT_UNIT_TESTS, query

FACTS = {"fct_sales": "order_item_id", "fct_orders": "order_id"}
SIMULATED_SECONDS = "8"


VIEWS = """
    select oid::regclass::text, pg_get_viewdef(oid), relowner::regrole::text,
        (select array_agg(entry::text order by entry::text) from unnest(relacl) as entry)
    from pg_class where relkind = 'v' and relnamespace in ('staging'::regnamespace, 'intermediate'::regnamespace)
    order by 1
"""


def columns(url, table):
    found = query(
        url,
        f"select attname from pg_attribute where attrelid = 'public.{table}'::regclass and attnum > 0 "
        "and not attisdropped order by attnum",
    )
    return ", ".join(f"{name}::text" for (name,) in found)


def summary(text):
    """Return the numbers of each table in a printed summary."""
    rows = [line.split() for line in text.splitlines()]
    return {
        row[0]: [int(cell.replace(",", "")) for cell in row[1:5]] for row in rows if len(row) == 6 and row[0] in TABLES
    }


def test_second_pipeline_run_moves_only_the_increment(machine):
    first = machine.succeed("pipeline")
    again = machine.succeed("pipeline", **WITHOUT_TESTS)
    machine.succeed("simulate", "--seconds", SIMULATED_SECONDS, "--rate", "120")
    third = machine.succeed("pipeline", **WITHOUT_UNIT_TESTS)
    urls = machine.urls()

    assert summary(first)["orders"] == [20_000, 20_000, 0, 0]
    assert {name: numbers for name, numbers in summary(again).items() if numbers[1:] != [0, 0, 0]} == {}
    assert sum(numbers[1] + numbers[2] for numbers in summary(third).values()) > 300
    assert "make psql ARGS=" in first
    compare_raw(urls)
    compare_facts(machine, urls)
    change_schema(machine, urls)
    check_messages(machine)


def compare_raw(urls):
    """Raw equals the source, row for row and all columns as text; rows deleted in the source are tombstones."""
    for table in TABLES:
        names = columns(urls["source"], table)
        source = {row[0] for row in query(urls["source"], f"select row({names})::text from public.{table}")}
        live = f"select row({names})::text from raw.{table} where _etl_deleted_at is null"
        raw = {row[0] for row in query(urls["target"], live)}
        assert len(source) > 20
        assert source == raw


def compare_facts(machine, urls):
    def read():
        return {
            fact: query(
                urls["target"], f"select (to_jsonb(f) - 'dbt_built_at')::text from marts.{fact} as f order by {key}"
            )
            for fact, key in FACTS.items()
        }

    incremental = read()
    machine.succeed("dbt-run", "--full-refresh")
    assert len(incremental["fct_orders"]) > 19_000
    assert incremental == read()


def change_schema(machine, urls):
    """Types under the models' views are widened, a column is added and a table is reloaded, without touching dbt."""
    execute(
        urls["source"],
        "alter table orders alter column total type numeric(14, 2);"
        "alter table customers add column vip text default 'no'",
    )
    views = query(urls["target"], VIEWS)
    machine.succeed("extract")
    machine.succeed("extract", "--full-refresh", "products")

    assert query(urls["target"], VIEWS) == views
    compare_raw(urls)
    machine.succeed("dbt-run")
    compare_facts(machine, urls)


def execute(url, statement):
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def check_messages(machine):
    """A stopped server, a source that is not ours: plain messages, and nothing written."""
    urls = machine.urls()
    refused = machine.run("simulate", SOURCE_DATABASE_URL=urls["SOURCE_DATABASE_URL"])
    unreachable = machine.run("extract", SOURCE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    machine.succeed("down")
    stopped = machine.run("status")

    assert refused.returncode == 2
    assert "is a database of yours" in refused.stderr
    assert unreachable.returncode == 3
    assert stopped.returncode == 3
    assert "the source server is stopped" in stopped.stderr
    assert "Traceback" not in refused.stderr + unreachable.stderr + stopped.stderr


def test_a_source_given_by_url_is_only_read(machine, source_url):
    from source_db import schema, seed

    schema.apply(source_url)
    finished = machine.run("pipeline", SOURCE_DATABASE_URL=source_url, **WITHOUT_TESTS)

    assert "it is only read" in finished.stderr
    assert seed.is_empty(source_url)


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_data_quality, a broken rule
def test_failing_model_test_stops_the_pipeline_and_is_named(machine):
    machine.succeed("seed", "--scale", "0.02")
    machine.succeed("pipeline", **WITHOUT_TESTS)
    urls = machine.urls()
    connection = psycopg2.connect(urls["source"])
    with connection, connection.cursor() as cursor:
        cursor.execute("alter table order_items drop constraint order_items_order_id_fkey")
        cursor.execute("update order_items set quantity = quantity + 1 where order_id = 1")
    connection.close()

    finished = machine.run("pipeline", **WITHOUT_UNIT_TESTS)

    assert finished.returncode == 1
    assert "rule fct_orders_total_adds_up: 1 row breaks it" in finished.stderr
    assert "Traceback" not in finished.stderr
