"""Tables of which tables.yml replicates only the rows that meet a condition."""

import psycopg2
import pytest

import etl
from etl.model import RunOptions

SALES = """
    create table sales (
        sale_id int primary key, region text, amount int, note text, updated_at timestamptz default clock_timestamp()
    );
    create index on sales (updated_at);
    insert into sales select n, case when n % 4 = 0 then 'EU' else 'US' end, n from generate_series(1, 400) as n
"""
EU = "region = 'EU' -- of Europe"
IN_RAW = "select sale_id, region, amount, note from raw.sales where _etl_deleted_at is null order by 1"


def configure(replication, where, watermark="updated_at", **more):
    tables = {"sales": {"where": where, "max_delete_fraction": 1, **more} if where else {"max_delete_fraction": 1}}
    replication.configure({"defaults": {"watermark": watermark, "batch_rows": 30}, "tables": tables})


@pytest.fixture(params=["updated_at", "xmin"])
def sales(replication, request):
    replication.on_source(SALES)
    configure(replication, EU, request.param)
    return replication


def watermark_of(replication):
    return replication.settings.tables.table("sales").watermark or "xmin"


def assert_equal(replication, condition="region = 'EU'"):
    found = replication.on_source(f"select sale_id, region, amount, note from sales where {condition} order by 1")
    (verdict,) = etl.verify(replication.settings)

    assert replication.on_target(IN_RAW) == found
    assert verdict.is_equal, verdict
    assert (verdict.source_rows, verdict.pending) == (len(found), 0)


def update(replication, statement):
    """Change rows in a session of its own, whose counters are known once it has ended."""
    connection = psycopg2.connect(replication.source_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def test_only_rows_that_meet_the_condition_are_replicated(sales):
    sales.run()
    assert len(sales.on_target(IN_RAW)) == 100
    sales.on_source("insert into sales select n, 'US', n from generate_series(501, 510) as n")
    sales.on_source("insert into sales select n, 'EU', n from generate_series(511, 520) as n")
    sales.on_source("update sales set amount = 0, updated_at = clock_timestamp() where sale_id % 8 = 0")
    sales.run(options=RunOptions(reconcile=True))

    assert len(sales.on_target(IN_RAW)) == 110
    assert_equal(sales)


def test_row_that_leaves_the_condition_is_deleted_in_the_same_run(sales):
    sales.run()
    update(sales, "update sales set region = 'US', updated_at = clock_timestamp() where sale_id = 4")
    sales.run()

    assert sales.on_target("select region from raw.sales where sale_id = 4 and _etl_deleted_at is not null") == [
        ("EU",)
    ]
    update(sales, "update sales set region = 'EU', updated_at = clock_timestamp() where sale_id = 4")
    sales.run()
    assert_equal(sales)


def test_row_that_enters_the_condition_without_its_watermark_arrives(sales):
    sales.run()
    update(sales, "update sales set region = 'EU' where sale_id = 5")
    sales.run()

    assert_equal(sales)


@pytest.mark.parametrize(
    ("before", "after", "condition"),
    [
        (EU, "region = 'US'", "region = 'US'"),
        (EU, None, "true"),
        (None, EU, "region = 'EU'"),
        ("amount < 100", "amount < 200", "amount < 200"),
    ],
)
def test_another_condition_takes_effect_in_the_next_run(sales, before, after, condition):
    watermark = watermark_of(sales)
    configure(sales, before, watermark)
    sales.run()
    configure(sales, after, watermark)
    sales.run()

    assert_equal(sales, condition)


def test_narrower_condition_that_deletes_many_rows_is_confirmed_first(sales):
    watermark = watermark_of(sales)
    configure(sales, None, watermark)
    sales.run()
    sales.configure({"defaults": {"watermark": watermark}, "tables": {"sales": {"where": EU}}})
    (refused,) = sales.run().tables
    assert "300 of 400 rows are missing from the source" in refused.error
    sales.run(options=RunOptions(allow_deletes=True))

    assert_equal(sales)


def test_first_load_in_ranges_and_a_reload_heed_the_condition(sales):
    sales.run(load_range_blocks=1)
    assert_equal(sales)
    sales.on_target("update raw.sales set amount = -1 where sale_id = 8")
    sales.run("sales", options=RunOptions(full_refresh=True))

    assert_equal(sales)


def test_unfinished_load_starts_over_with_another_condition(sales):
    """A row for which the condition cannot be computed ends the first load between two ranges."""
    sales.on_source("insert into sales select n, 'EU', n from generate_series(401, 20000) as n")
    configure(sales, "1 / (sale_id - 15000) is not null and region = 'EU'", watermark_of(sales))
    (failed,) = sales.run(load_range_blocks=8).tables
    assert "division by zero" in failed.error
    assert sales.on_target("select next_block > 8 from etl.loads") == [(True,)]
    configure(sales, "region = 'US'", watermark_of(sales))
    sales.run()

    assert_equal(sales, "region = 'US'")


def test_condition_that_the_source_refuses_fails_the_table(sales):
    configure(sales, "regoin = 'EU'", watermark_of(sales))

    (failed,) = sales.run().tables

    assert 'column "regoin" does not exist' in failed.error
