"""A warehouse comes back from its dump with the commands of docs/operations.md, and goes on from there."""

import pytest

from tests.integration.dbt.built_shop import read_marts
from tests.integration.operations.conftest import SHELL, blocks

ROWS = "select count(*), sum(hashtextextended(s::text, 0)) from snapshots.snap_products as s"


@pytest.fixture
def query(target):
    return target.force


def change_source(source, text):
    source.query(f"update products set name = name || '{text}' where product_id % 7 = 0")
    source.query(f"insert into products (sku, name, category, price, cost) values ('{text}', '{text}', 'none', 2, 1)")
    source.query(
        "delete from payments where payment_id in (select payment_id from payments order by payment_id limit 3)"
    )


def test_restored_warehouse_continues_and_equals_a_full_refresh(shop, source, target, query):
    dump, restore = blocks("Backup", "sh")
    change_source(source, "before")
    shop.succeed("extract")
    shop.succeed("dbt-run")
    versions = query(ROWS)
    target.paste(dump, program=SHELL)
    change_source(source, "after")
    shop.succeed("extract")
    query("drop schema snapshots, marts cascade")
    target.paste(restore, program=SHELL)
    restored = query(ROWS)
    shop.succeed("extract")
    compared = shop.succeed("verify")
    shop.succeed("dbt-run")
    marts = read_marts(query)
    shop.succeed("dbt-run", "--full-refresh")

    assert versions[0][0] > 0
    assert restored == versions
    assert "different" not in compared.stdout
    assert len(marts) > 8
    assert marts == read_marts(query)
    assert target.query("select count(*) > 0 from marts.fct_orders", "analyst")[1] == [(True,)]
    assert target.query("select count(*) > 0 from etl.runs", "monitor")[1] == [(True,)]


def test_lost_ledger_is_rebuilt_without_a_dump(shop, source, target, query):
    query("drop schema etl cascade")
    change_source(source, "lost")
    for line in blocks("Target")[0].splitlines():
        if " etl " in line:
            target.paste(line)
    shop.succeed("extract")
    compared = shop.succeed("verify")
    shop.succeed("dbt-run", "--full-refresh")
    marts = read_marts(query)
    change_source(source, "later")
    shop.succeed("extract")
    shop.succeed("dbt-run")
    later = read_marts(query)
    shop.succeed("dbt-run", "--full-refresh")

    assert "different" not in compared.stdout
    assert marts != later == read_marts(query)
    assert query("select max(run_id) from etl.runs") == [(2,)]
