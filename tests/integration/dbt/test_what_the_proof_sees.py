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
                "update raw.orders set status = case status when 'returned' then 'delivered' else 'returned' end, "
                "_etl_run_id = %s where order_id = %s",
                run_id,
                order_id,
            )
            if order_id == 100:
                warehouse.build_chain()


def run_while_a_fact_is_built(warehouse):
    """A run begins, commits and ends after the rows of a fact have been read, before they are written."""
    change = (
        "update payments set status = 'failed' where payment_id = "
        "(select min(payment_id) from payments where amount >= 0 and status <> 'failed')"
    )
    warehouse.on_source(change)
    warehouse.replicate()
    with ThreadPoolExecutor(1) as pool:
        with warehouse.transaction() as cursor:
            cursor.execute("lock table marts.fct_payments in share mode")
            building = pool.submit(warehouse.build, "fct_payments")
            warehouse.wait_until_blocked("marts.fct_payments")
            warehouse.on_source(change)
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


def move_an_order_meanwhile(warehouse):
    """A build knows an order by its line; before it reads the order, that has moved to another customer."""
    ((order_id, customer_id),) = warehouse.on_source(
        "select min(order_id), customer_id from orders where status <> 'cart' group by customer_id "
        "having count(*) > 3 order by customer_id limit 1"
    )
    warehouse.on_source("update order_items set quantity = quantity + 1 where order_id = %s", order_id)
    warehouse.replicate()
    with ThreadPoolExecutor(1) as pool:
        with warehouse.transaction() as cursor:
            # The keys are collected without this view, the rows are read through it.
            cursor.execute("alter view intermediate.int_orders_enriched set (security_barrier = false)")
            building = pool.submit(warehouse.build, "fct_orders")
            warehouse.wait_until_blocked("intermediate.int_orders_enriched")
            warehouse.on_source(
                "update orders set customer_id = (select max(customer_id) from customers where customer_id <> %s), "
                "ordered_at = ordered_at where order_id = %s",
                customer_id,
                order_id,
            )
            warehouse.replicate()
        building.result(WAIT_SECONDS)


# What a naive author would write: what is newer than the newest that was built.
BUSINESS_TIME = """
    {%- set times = {
        'events': 'occurred_at', 'products': 'valid_from', 'customers': 'valid_from', 'levels': 'valid_from'
    } -%}
    {{ relation_alias }}.{{ times.get(relation_alias, 'updated_at') }} > (
        select max(builds.dbt_built_at) from {{ builds_table() }} as builds
        where builds.model_name = '{{ this.identifier }}'
    )"""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Pieces of the macros, what stands there instead, and the play that has to find it."""

    changes: tuple[tuple[str, str, str], ...]  # file of dbt/macros, right, wrong
    play: Any


SEVERAL_SNAPSHOTS = ("rebuild_touched.sql", "isolation level repeatable read", "isolation level read committed")


MISTAKES = {
    "keys are picked by business time": Mistake(
        changes=(("builds.sql", "    {{ relation_alias }}._etl_run_id > {{ noted_run() }}", BUSINESS_TIME),),
        play=commit_late,
    ),
    "a run is noted before it has ended": Mistake(
        changes=(("builds.sql", " where runs.ended_at is not null", ""),), play=build_in_the_midst_of_a_run
    ),
    "the note is taken after the keys are collected": Mistake(
        changes=(
            SEVERAL_SNAPSHOTS,
            (
                "builds.sql",
                "    insert into {{ builds_table() }}",
                "    {{ begin_build() }};\n    insert into {{ builds_table() }}",
            ),
        ),
        play=run_while_a_fact_is_built,
    ),
    "the note does not heed the histories' notes": Mistake(
        changes=(("builds.sql", "{{ return(names | unique | list) }}", "{{ return([]) }}"),),
        play=build_facts_before_their_histories,
    ),
    "keys and rows are read at several snapshots": Mistake(changes=(SEVERAL_SNAPSHOTS,), play=move_an_order_meanwhile),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unchanged_project_passes_when(warehouse, mistake):
    before = warehouse.fingerprints()
    MISTAKES[mistake].play(warehouse)
    warehouse.build_chain()

    assert warehouse.fingerprints() != before
    warehouse.assert_equals_full_refresh()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_broken_project_is_detected_when(warehouse, make_dbt, tmp_path, mistake):
    found = MISTAKES[mistake]
    project = Path(shutil.copytree(PROJECT, tmp_path / "project"))
    for file, right, wrong in found.changes:
        path = project / "macros" / file
        text = path.read_text()
        assert text.count(right) == 1
        path.write_text(text.replace(right, wrong))
    warehouse.dbt = make_dbt(project)
    found.play(warehouse)
    warehouse.build_chain()

    assert set(warehouse.differences()) & set(warehouse.dbt.facts)
