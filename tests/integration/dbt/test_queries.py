"""Every question of docs/queries.md is answered, by a role that reads the marts and nothing else."""

import re
from contextlib import contextmanager
from decimal import ROUND_HALF_UP, Decimal

import psycopg2
import pytest
from psycopg2 import sql

from source_db import schema
from tests.integration.dbt.built_shop import CHECKOUT, Shop, open_database, open_shop

PAGE = (CHECKOUT / "docs" / "queries.md").read_text(encoding="utf-8")
QUESTIONS = dict(re.findall(r"^## (.+?)\n.*?^```sql\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL))
WITHOUT_ROWS_IN_A_SMALL_SHOP = {"Which stock has to be ordered first?"}


@contextmanager
def built(shop):
    """Build the marts, and yield a function that runs a query as a role with the rights of `analyst`."""
    shop.succeed("extract")
    shop.succeed("dbt-run")
    connection = psycopg2.connect(shop.target_url)
    role = sql.Identifier(f"reader_{connection.info.dbname}")
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("create role {}").format(role))
        cursor.execute(sql.SQL("grant usage on schema marts to {}").format(role))
        cursor.execute(sql.SQL("grant select on all tables in schema marts to {}").format(role))
        cursor.execute(sql.SQL("set role {}").format(role))

        def run(query):
            cursor.execute(query)
            return [column.name for column in cursor.description], cursor.fetchall()

        yield run
    connection.rollback()
    connection.close()


@pytest.fixture(scope="module")
def ask(source_server, target_server, tmp_path_factory):
    with (
        open_shop(source_server, target_server, tmp_path_factory.mktemp("queries")) as shop,
        # Products of one name, one that never sold and is out of stock, a customer whose only order was cancelled.
        psycopg2.connect(shop.source_url) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("update products set name = 'One name'")
        cursor.execute(
            "insert into products (sku, name, category, price, cost) values ('unsold', 'Unsold', 'none', 2, 1)"
        )
        cursor.execute(
            "with customer as (insert into customers (email, first_name, last_name, country, city) "
            "values ('nobody@example.com', 'No', 'Body', 'US', 'Springfield') returning customer_id) "
            "insert into orders (customer_id, status, channel, ordered_at) "
            "select customer_id, 'cancelled', 'web', now() from customer"
        )
        connection.commit()
        with built(shop) as run:
            yield run


@pytest.fixture(scope="module")
def ask_empty(source_server, target_server, tmp_path_factory):
    with open_database(source_server) as source_url, open_database(target_server) as target_url:
        schema.apply(source_url)
        folder = tmp_path_factory.mktemp("empty")
        with built(Shop(source_url=source_url, target_url=target_url, folder=folder)) as run:
            yield run


def test_page_has_a_query_below_each_question():
    assert len(QUESTIONS) >= 12
    assert len(QUESTIONS) == PAGE.count("\n## ")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered(ask, question):
    columns, rows = ask(QUESTIONS[question])

    assert len(set(columns)) == len(columns) > 1
    assert rows or question in WITHOUT_ROWS_IN_A_SMALL_SHOP


def test_every_question_works_on_an_empty_shop(ask_empty):
    rows = {question: ask_empty(query)[1] for question, query in QUESTIONS.items()}

    assert rows.pop("How many customers come back, and how soon?") == [(0, None, None, None)]
    assert len(rows.pop("Is the pipeline healthy?")) == 1
    assert set(map(tuple, rows.values())) == {()}


def test_customers_with_only_reversed_orders_are_not_buyers(ask):
    _, ((repeating, percent, _, _),) = ask(QUESTIONS["How many customers come back, and how soon?"])
    _, ((buyers,),) = ask("select count(distinct customer_id) from marts.fct_orders where not is_reversed")
    _, ((customers,),) = ask("select count(*) from marts.dim_customers where order_count > 0")

    assert buyers < customers
    assert percent == (Decimal(100 * repeating) / buyers).quantize(Decimal("0.1"), ROUND_HALF_UP)  # as PostgreSQL does


def test_products_with_equal_names_stay_separate_in_a_basket(ask):
    columns, rows = ask(QUESTIONS["Which products are bought together?"])
    pairs = {(row[columns.index("sku")], row[columns.index("bought_with_sku")]) for row in rows}

    assert len(pairs) == len(rows) > 1


def test_unsold_products_are_not_reordered_first(ask):
    _, rows = ask(QUESTIONS["Which stock has to be ordered first?"])
    _, ((status, units),) = ask(
        "select status, suggested_reorder_units from marts.inventory_health where sku = 'unsold'"
    )

    assert (status, units) == ("out_of_stock", 0)
    assert "unsold" not in {row[0] for row in rows}


def test_category_revenue_adds_up_to_daily_revenue(ask):
    _, of_categories = ask(QUESTIONS["What did each category sell, day by day?"])
    _, of_days = ask("select order_date, net_revenue_usd from marts.daily_revenue order by order_date desc limit 7")

    by_day = {}
    for day, _, revenue, _ in of_categories:
        by_day[day] = by_day.get(day, 0) + revenue

    assert by_day == {day: revenue for day, revenue in of_days if revenue or day in by_day}
