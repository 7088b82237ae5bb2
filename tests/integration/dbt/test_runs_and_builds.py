"""Builds beside runs, apart from each other, and failed: whatever the moment, the next build makes it good."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from source_db import simulate

WAIT_SECONDS = 60

# Writes on behalf of a run, as its merge does: rows of the run in hand, at the time of its transaction.
TOUCH_ORDERS = (
    "update raw.orders set status = 'returned', updated_at = now(), _etl_run_id = {run}, _etl_synced_at = now() "
    "where order_id between {first} and {first} + 5"
)
TOUCH_PRODUCTS = (
    "update raw.products set cost = cost + 1, updated_at = now(), _etl_run_id = {run}, _etl_synced_at = now() "
    "where product_id = {first}"
)
TOUCH_STOCK = (
    "update raw.inventory_levels set on_hand = on_hand + 1, updated_at = now(), _etl_run_id = {run}, "
    "_etl_synced_at = now() where product_id = {first}"
)
PLACE = (
    "with placed as (insert into raw.orders select (jsonb_populate_record(o, jsonb_build_object('order_id', "
    "o.order_id + 100000 * {first}, 'ordered_at', clock_timestamp(), '_etl_run_id', {run}))).* "
    "from raw.orders as o where order_id between 1 and 5 returning order_id) "
    "insert into raw.order_items select (jsonb_populate_record(i, jsonb_build_object('order_item_id', "
    "i.order_item_id + 100000 * {first}, 'order_id', placed.order_id, '_etl_run_id', {run}))).* "
    "from raw.order_items as i inner join placed on i.order_id = placed.order_id - 100000 * {first}"
)


def write(warehouse, run_id, number):
    """Commit a part of what a run brings, to every parent of the facts."""
    for statement in (TOUCH_PRODUCTS, TOUCH_STOCK, PLACE):
        warehouse.query(statement.format(run=run_id, first=number))
    warehouse.query(TOUCH_ORDERS.format(run=run_id, first=100 + 10 * number))


def test_rows_of_a_running_run_are_read_again_by_the_next_build(warehouse):
    with warehouse.run_in_progress() as run_id:
        write(warehouse, run_id, 1)
        warehouse.build_chain()
        warehouse.assert_equals_full_refresh(after="a build in the midst of a run")
        write(warehouse, run_id, 2)
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_rows_committed_after_the_snapshots_are_read_again(warehouse):
    with warehouse.run_in_progress() as run_id:
        write(warehouse, run_id, 1)
        warehouse.build(*warehouse.dbt.snapshots)
        write(warehouse, run_id, 2)
    warehouse.build(*warehouse.dbt.rebuilt)
    warehouse.assert_equals_full_refresh(after="a build with older snapshots")
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_first_build_during_a_run_is_corrected_by_the_next(unbuilt):
    with unbuilt.run_in_progress() as run_id:
        write(unbuilt, run_id, 1)
        unbuilt.build()
        write(unbuilt, run_id, 2)
    unbuilt.build_chain()

    unbuilt.assert_equals_full_refresh()


def test_first_build_beside_repeated_runs_is_fixed_by_the_next(unbuilt):
    is_built = Event()

    def keep_running():
        number = 0
        while not is_built.is_set():
            number += 1
            simulate.run(unbuilt.source_url, seconds=0.3, rate=200, seed=number)
            unbuilt.replicate()
        return number

    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(keep_running)
        try:
            unbuilt.build()
        finally:
            is_built.set()
        assert runs.result(WAIT_SECONDS) > 1
    unbuilt.build_chain()

    unbuilt.assert_equals_full_refresh()


def change_all(warehouse):
    warehouse.on_source(
        "update orders set status = 'returned' "
        "where order_id in (select order_id from orders where status = 'delivered' order by order_id limit 20); "
        "update products set cost = cost + 1; update inventory_levels set on_hand = on_hand + 1; "
        "update payments set status = 'failed' where payment_id = 9 and amount >= 0; "
        "insert into events (session_id, event_type, channel) values (gen_random_uuid(), 'page_view', 'web')"
    )
    warehouse.replicate()


def notes(warehouse):
    return warehouse.query("select model_name, run_id, dbt_built_at from intermediate.dbt_builds order by 1")


@pytest.mark.parametrize("model", ["fct_orders", "fct_inventory_daily", "int_products_history"])
def test_partly_failed_build_is_corrected_by_the_next(warehouse, model):
    change_all(warehouse)
    relation, _ = warehouse.dbt.rebuilt[model]
    warehouse.query(f"alter table {relation} add constraint no_more check (false) not valid")
    is_success, log = warehouse.try_to_build(*warehouse.dbt.snapshots, *warehouse.dbt.rebuilt)
    warehouse.query(f"alter table {relation} drop constraint no_more")
    assert not is_success, "expected that the build fails, found that it succeeded"
    assert "ERROR=1" in log
    assert "no_more" in log
    assert warehouse.differences(model)
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_dbt_retry_resumes_a_failed_build(warehouse):
    change_all(warehouse)
    warehouse.query("alter table marts.fct_sales add constraint no_more check (false) not valid")
    is_success, _ = warehouse.try_to_build(*warehouse.dbt.rebuilt, "--write-json")
    warehouse.query("alter table marts.fct_sales drop constraint no_more")
    change_all(warehouse)
    warehouse.dbt("retry")

    assert not is_success, "expected that the build fails, found that it succeeded"
    warehouse.assert_equals_full_refresh("fct_sales")
    warehouse.build_chain()
    warehouse.assert_equals_full_refresh()


def test_build_killed_before_its_record_leaves_no_rows(warehouse, make_dbt):
    dbt = make_dbt()
    change_all(warehouse)
    warehouse.build(*warehouse.dbt.snapshots, "int_products_history", "int_customers_history")
    rows, noted = warehouse.row_versions(), notes(warehouse)
    with ThreadPoolExecutor(1) as pool, warehouse.transaction() as builds:
        with warehouse.transaction() as fact:
            fact.execute("lock table marts.fct_sales in share mode")
            building = pool.submit(dbt.try_to, "build", "--select", "fct_sales")
            warehouse.wait_until_blocked("marts.fct_sales")
            # Taken only now, for dbt writes to it when it starts.
            builds.execute("lock table intermediate.dbt_builds in share mode")
        warehouse.wait_until_blocked("intermediate.dbt_builds")
        dbt.kill()
        is_success, log = building.result(WAIT_SECONDS)
        builds.connection.rollback()
    # The server goes on with the statement in hand, and only then sees that nobody is there any more.
    warehouse.wait_for(
        "not exists (select from pg_stat_activity where application_name = 'dbt' and pid <> pg_backend_pid())"
    )

    assert not is_success, "expected that the build fails, found that it succeeded"
    assert "died with -9" in log
    assert warehouse.row_versions() == rows
    assert notes(warehouse) == noted
    warehouse.build_chain()
    warehouse.assert_equals_full_refresh()


def test_build_without_changes_writes_no_fact(warehouse):
    before = warehouse.row_versions()
    warehouse.replicate()
    # A run that ends on the next day would bring a day of stock.
    warehouse.query(
        "update etl.runs as r set ended_at = f.ended_at from (select max(ended_at) as ended_at from etl.runs "
        "where run_id < (select max(run_id) from etl.runs)) as f where r.run_id = (select max(run_id) from etl.runs)"
    )
    warehouse.build()

    assert [fact for fact, versions in before.items() if not versions] == []
    assert warehouse.row_versions() == before


def test_single_fact_can_be_built_repeatedly(warehouse):
    for _ in range(2):
        change_all(warehouse)
        for fact in warehouse.dbt.facts:
            warehouse.build(fact)
            warehouse.assert_equals_full_refresh(fact, after=f"a build of {fact} alone")
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_building_history_alone_keeps_dependent_views_and_facts(warehouse):
    change_all(warehouse)
    warehouse.build(*warehouse.dbt.snapshots)
    views = "select schemaname, viewname from pg_views where schemaname in ('intermediate', 'marts') order by 1, 2"
    before = warehouse.query(views)
    warehouse.build("int_products_history", "int_customers_history")

    assert len(before) >= 4
    assert warehouse.query(views) == before
    warehouse.build(*warehouse.dbt.facts)
    warehouse.assert_equals_full_refresh(*warehouse.dbt.facts)


def test_model_without_its_build_record_is_fully_rebuilt(warehouse):
    """Its rows may be of keys that have been purged from raw meanwhile, which nothing else would touch."""
    warehouse.on_source("delete from payments where payment_id = 70; delete from orders where order_id = 50")
    warehouse.replicate()
    warehouse.query("delete from intermediate.dbt_builds where model_name like 'fct%%'")
    warehouse.build(*warehouse.dbt.snapshots, "int_*_history")
    warehouse.tombstone_days = "0.0000000001"
    warehouse.replicate()
    assert warehouse.query("select 1 from raw.payments where payment_id = 70") == []
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_full_refresh_of_one_model_does_not_affect_others(warehouse):
    change_all(warehouse)
    warehouse.build("fct_sales", "--full-refresh")
    change_all(warehouse)
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()


def test_days_end_consistently_where_midnight_is_skipped(warehouse):
    """In Santiago the clocks are set ahead at midnight, so that this day begins at one o'clock."""
    warehouse.query("alter database warehouse set timezone = 'America/Santiago'")
    ((days,),) = warehouse.query("select date '2027-09-10' - current_date")
    warehouse.replicate()
    warehouse.build_chain()
    warehouse.pass_days(days)
    warehouse.on_source("update inventory_levels set on_hand = on_hand + 1 where product_id <= 3")
    warehouse.replicate()
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()
    assert warehouse.query(
        "select count(distinct n) from (select count(*) as n from marts.fct_inventory_daily "
        "group by product_id, warehouse_code) as f"
    ) == [(1,)]


def test_running_run_after_a_gap_removes_no_stock_days(warehouse):
    """Its rows tell of days that no run has ended on: they are not days of the fact yet, for any product."""
    with warehouse.run_in_progress() as run_id:
        warehouse.query(
            "update raw.inventory_levels set on_hand = on_hand + 1, updated_at = now() + interval '5 days', "
            "_etl_synced_at = now() + interval '5 days', _etl_run_id = %s where product_id = 1",
            run_id,
        )
        warehouse.build_chain()
        warehouse.assert_equals_full_refresh(after="a build in the midst of the run")
    warehouse.query("update etl.runs set ended_at = ended_at + interval '5 days' where run_id = %s", run_id)
    warehouse.build_chain()

    warehouse.assert_equals_full_refresh()
    assert warehouse.query("select max(stock_date) - min(stock_date) from marts.fct_inventory_daily") == [(5,)]


def test_compared_full_refresh_equals_that_of_dbt(warehouse):
    change_all(warehouse)
    warehouse.build_chain()
    warehouse.assert_equals_full_refresh()
    before = warehouse.fingerprints()
    warehouse.build(*warehouse.dbt.facts, "--full-refresh")

    assert warehouse.fingerprints() == before
