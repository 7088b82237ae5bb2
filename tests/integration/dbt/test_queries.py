"""Every question of docs/queries.md is answered, by a role that reads the marts and nothing else."""

import re

import psycopg2
import pytest
from psycopg2 import sql

from tests.integration.dbt.built_shop import CHECKOUT, open_shop

PAGE = (CHECKOUT / "docs" / "queries.md").read_text(encoding="utf-8")
QUESTIONS = dict(re.findall(r"^## (.+?)\n.*?^```sql\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL))
WITHOUT_ROWS_IN_A_SMALL_SHOP = {"Which stock has to be ordered first?"}


@pytest.fixture(scope="module")
def ask(source_server, target_server, tmp_path_factory):
    """A function that runs a query as a role with the rights of `analyst`."""
    with open_shop(source_server, target_server, tmp_path_factory.mktemp("queries")) as shop:
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


def test_the_page_has_a_query_below_each_question():
    assert len(QUESTIONS) >= 12
    assert len(QUESTIONS) == PAGE.count("\n## ")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered(ask, question):
    columns, rows = ask(QUESTIONS[question])

    assert len(set(columns)) == len(columns) > 1
    assert rows or question in WITHOUT_ROWS_IN_A_SMALL_SHOP


def test_revenue_by_category_and_day_is_that_of_the_days(ask):
    _, of_categories = ask(QUESTIONS["What did each category sell, day by day?"])
    _, of_days = ask("select order_date, net_revenue_usd from marts.daily_revenue order by order_date desc limit 7")

    by_day = {}
    for day, _, revenue, _ in of_categories:
        by_day[day] = by_day.get(day, 0) + revenue

    assert by_day == {day: revenue for day, revenue in of_days if revenue or day in by_day}
