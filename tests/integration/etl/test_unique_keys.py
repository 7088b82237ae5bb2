"""Tables without a primary key are replicated by a unique index over NOT NULL columns that tables.yml names."""

import pytest
import yaml

import etl
from etl.model import RunOptions

PRICES = """
    create table prices (shop text not null, sku text not null, price numeric, note text, day date,
        updated_at timestamptz not null default clock_timestamp());
    create unique index prices_key on prices (sku text_pattern_ops, shop) include (price);
    insert into prices (shop, sku, price) select 'shop ' || n % 7, 'Sku ' || n, n from generate_series(1, 500) as n
"""
ROWS = 'select shop, sku, price::text, note from {} order by shop collate "C", sku collate "C"'


@pytest.fixture(params=["updated_at", "xmin"])
def prices(replication, request):
    replication.on_source(PRICES)
    configure(replication, ["shop", "sku"], request.param)
    return replication


def configure(replication, key, watermark="updated_at"):
    defaults = {"watermark": watermark, "batch_rows": 50}
    replication.configure({"defaults": defaults, "tables": {"prices": {"key": key}}})


def assert_equal(replication):
    assert replication.on_target(ROWS.format("raw.prices where _etl_deleted_at is null")) == replication.on_source(
        ROWS.format("prices")
    )
    (verdict,) = etl.verify(replication.settings, ["prices"])
    assert verdict.is_equal, verdict
    assert not verdict.pending


def error_of(result):
    (table,) = result.tables
    return table.error


def test_rows_are_merged_by_the_columns_of_a_unique_index(prices):
    prices.run()
    prices.on_source("update prices set price = price + 1, updated_at = clock_timestamp() where sku like 'Sku 1%'")
    prices.on_source("update prices set sku = lower(sku), updated_at = clock_timestamp() where sku = 'Sku 7'")
    prices.on_source("delete from prices where sku like 'Sku 3%'")
    prices.on_source("insert into prices (shop, sku, price) values ('shop 1', 'Sku 7', 7)")
    prices.run(options=RunOptions(reconcile=True))

    assert prices.on_target("select count(*) from raw.prices where _etl_deleted_at is not null") > [(100,)]
    assert_equal(prices)


def test_key_is_found_again_by_each_run(prices):
    prices.run()
    prices.on_source("drop index prices_key")
    refused = error_of(prices.run())
    prices.on_source("create unique index on prices (shop, sku)")
    prices.on_source("insert into prices (shop, sku) values ('shop 9', 'new')")
    prices.run_one("prices")

    assert "public.prices has no unique index over exactly shop, sku, all NOT NULL" in refused
    assert "create it on the source, or correct `key`" in refused
    assert_equal(prices)


def test_another_key_stops_the_table(prices):
    prices.run()
    prices.on_source("alter table prices add column price_id int generated always as identity primary key")
    configure(prices, ["price_id"])

    assert "etl reset prices" in error_of(prices.run())


@pytest.mark.parametrize(
    "index",
    [
        "create index on prices (day)",
        "create unique index on prices (day)",
        "create unique index on prices (sku)",
        "create unique index on prices (shop, sku, day)",
        "create unique index on prices (shop) where sku > 'S'",
        "create unique index on prices (lower(sku), shop)",
    ],
)
def test_index_that_does_not_identify_rows_is_refused(replication, index):
    replication.on_source(PRICES)
    replication.on_source(f"truncate prices; drop index prices_key; {index}")
    for key in (["day"], ["shop"], ["sku", "shop"]):
        configure(replication, key)

        assert f"has no unique index over exactly {', '.join(key)}" in error_of(replication.run())


def test_primary_key_may_be_named_too(replication):
    replication.on_source(PRICES)
    replication.on_source("drop index prices_key; alter table prices add primary key (sku, shop)")
    configure(replication, ["sku", "shop"])
    replication.run_one("prices")

    assert_equal(replication)


def test_table_without_primary_key_is_refused_with_both_ways_on(replication):
    replication.on_source(PRICES)
    replication.configure({"tables": {"prices": {}}})

    refused = error_of(replication.run())

    assert "add primary key (...); or name the columns of a unique index as its `key` in tables.yml" in refused


def test_what_discover_proposes_is_accepted(replication):
    replication.on_source(PRICES)
    replication.on_source(
        'create table "Odd" ("Key: 1" int not null unique, "true" text); insert into "Odd" values (1)'
    )
    replication.on_source("create table keyed (a int not null unique, b int primary key)")
    proposed = yaml.safe_load(replication.command("discover").stdout)
    replication.configure(proposed)

    result = replication.run()

    assert not result.has_failures, result
    assert {name: table.get("key") for name, table in proposed["tables"].items()} == {
        "Odd": ["Key: 1"],
        "keyed": None,
        "prices": ["sku", "shop"],
    }
    assert_equal(replication)
