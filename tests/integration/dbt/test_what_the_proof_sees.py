"""Models that go wrong in the ways that are near at hand: the comparison with a full refresh has to find each.

Each play passes on the project as it is. Then the project is copied and made wrong, and the same play has to fail.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

PROJECT = Path(__file__).parents[3] / "dbt"
WAIT_SECONDS = 60


def commit_late(warehouse):
    """A transaction begins before a build and commits after it; an event of last month arrives."""
    late = psycopg2.connect(warehouse.source_url)
    with late.cursor() as cursor:
        cursor.execute(
            "update orders set status = 'returned' where order_id = 100; "
            "update payments set status = 'failed' where payment_id = 9; "
            "update products set cost = cost + 1 where product_id = 1; "
            "insert into orders (customer_id, status, channel, ordered_at) values (1, 'placed', 'web', now()) "
        )
        warehouse.on_source("update inventory_levels set on_hand = on_hand + 1 where product_id = 1")
        warehouse.replicate()
        warehouse.build_chain()
    late.commit()
    late.close()
    warehouse.on_source(
        "insert into events (session_id, event_type, channel, occurred_at) "
        "values (gen_random_uuid(), 'page_view', 'web', now() - interval '30 days')"
    )
    warehouse.replicate()


def build_in_the_midst_of_a_run(warehouse):
    with warehouse.run_in_progress() as run_id:
        for order_id in (100, 101):
            warehouse.query(
                "update raw.orders set status = 'returned', _etl_run_id = %s where order_id = %s", run_id, order_id
            )
            if order_id == 100:
                warehouse.build_chain()


def run_while_a_fact_is_built(warehouse):
    """A run begins, commits and ends after the rows of a fact have been read, before they are written."""
    change = "update payments set status = 'failed' where payment_id = %s and amount >= 0"
    warehouse.on_source(change, 9)
    warehouse.replicate()
    with ThreadPoolExecutor(1) as pool:
        with warehouse.transaction() as cursor:
            cursor.execute("lock table marts.fct_payments in share mode")
            building = pool.submit(warehouse.build, "fct_payments")
            warehouse.wait_until_blocked("marts.fct_payments")
            warehouse.on_source(change, 10)
            warehouse.replicate()
        building.result(WAIT_SECONDS)


def build_facts_before_their_histories(warehouse):
    warehouse.on_source(
        "update products set cost = 7 where product_id = 1; "
        "with placed as (insert into orders (customer_id, status, channel, ordered_at) "
        "values (1, 'placed', 'web', clock_timestamp()) returning order_id) "
        "insert into order_items (order_id, product_id, quantity, unit_price) "
        "select placed.order_id, 1, 2, 9.99 from placed"
    )
    warehouse.replicate()
    warehouse.build(*warehouse.dbt.facts)


# What a naive author would write: what is newer than the newest that was built.
BUSINESS_TIME = """
    {%- set times = {
        'events': 'occurred_at', 'products': 'valid_from', 'customers': 'valid_from', 'levels': 'valid_from'
    } -%}
    {{ relation_alias }}.{{ times.get(relation_alias, 'updated_at') }} > (
        select max(builds.dbt_built_at) from {{ builds_table() }} as builds"""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A piece of macros/builds.sql, what stands there instead, and the play that has to find it."""

    right: str
    wrong: str
    play: Any


MISTAKES = {
    "keys are picked by business time": Mistake(
        right="""    {{ relation_alias }}._etl_run_id > (
        select coalesce(max(builds.run_id), 0) from {{ builds_table() }} as builds""",
        wrong=BUSINESS_TIME,
        play=commit_late,
    ),
    "a run is noted before it has ended": Mistake(
        right=" where runs.ended_at is not null", wrong="", play=build_in_the_midst_of_a_run
    ),
    "the note is taken after the keys are collected": Mistake(
        right="    insert into {{ builds_table() }}",
        wrong="    {{ begin_build() }};\n    insert into {{ builds_table() }}",
        play=run_while_a_fact_is_built,
    ),
    "the note does not heed the histories' notes": Mistake(
        right="{{ return(names | unique | list) }}", wrong="{{ return([]) }}", play=build_facts_before_their_histories
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_project_as_it_is_passes_when_elsewhere(warehouse, mistake):
    before = warehouse.fingerprints()
    MISTAKES[mistake].play(warehouse)
    warehouse.build_chain()

    assert warehouse.fingerprints() != before
    warehouse.assert_equals_full_refresh()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_project_is_found_wrong_when(warehouse, make_dbt, tmp_path, mistake):
    found = MISTAKES[mistake]
    project = Path(shutil.copytree(PROJECT, tmp_path / "project"))
    path = project / "macros" / "builds.sql"
    text = path.read_text()
    assert text.count(found.right) == 1
    path.write_text(text.replace(found.right, found.wrong))
    warehouse.dbt = make_dbt(project)
    found.play(warehouse)
    warehouse.build_chain()

    assert set(warehouse.differences()) & set(warehouse.dbt.facts)
