"""Each rule finds the rows that break it and no others; a broken rule stops the pipeline and shows where they are."""

import re

import pytest

from tests.integration.dbt.built_shop import WITHOUT_TESTS, WITHOUT_UNIT_TESTS, open_shop

NOBODY = 999_999_999
# Each is one row that breaks one rule; the rows differ, so that the counts tell the rules apart.
ONE_ROW_EACH = {
    "stg_orders_total_adds_up": "update raw.orders set total = total + 1 where order_id = {order}",
    "stg_orders_amounts_are_in_range": (
        "update raw.orders set shipping = -1, total = subtotal - discount + tax - 1 where order_id = {order}"
    ),
    "stg_orders_steps_follow_each_other": "update raw.orders set delivered_at = shipped_at - interval '1 day' "
    "where order_id = {order}",
    "stg_orders_refer_to_customers": f"update raw.orders set customer_id = {NOBODY} where order_id = {{order}}",
    "stg_orders_lies_in_the_past": "update raw.orders set delivered_at = now() + interval '1 day' "
    "where order_id = {order}",
    "stg_customers_changes_after_it_is_made": (
        "update raw.customers set updated_at = created_at - interval '1 day' where customer_id = 1"
    ),
    "stg_customers_lies_in_the_past": "update raw.customers set updated_at = 'infinity' where customer_id = 2",
    "stg_products_amounts_are_in_range": "update raw.products set cost = -1 where product_id = 1",
    "stg_campaigns_amounts_and_days_are_in_range": (
        "update raw.campaigns set ends_on = starts_on - 1 where campaign_id = 1"
    ),
    "stg_order_items_amounts_are_in_range": (
        "update raw.order_items set quantity = 0, discount = 0 where order_item_id = 1"
    ),
    "stg_order_items_refer_to_orders": f"update raw.order_items set order_id = {NOBODY} where order_item_id = 2",
    "stg_order_items_refer_to_products": f"update raw.order_items set product_id = {NOBODY} where order_item_id = 3",
    "stg_payments_refunds_are_negative": (
        "update raw.payments set amount = -1 where payment_id = "
        "(select payment_id from raw.payments where status = 'captured' order by 1 limit 1)"
    ),
    "stg_payments_refer_to_orders": (
        f"update raw.payments set order_id = {NOBODY} where payment_id = "
        "(select payment_id from raw.payments where status = 'captured' order by 1 desc limit 1)"
    ),
    "stg_inventory_levels_is_never_negative": (
        "update raw.inventory_levels set on_hand = -1 where (product_id, warehouse_code) = "
        "(select product_id, warehouse_code from raw.inventory_levels order by 1, 2 limit 1)"
    ),
    "stg_events_refer_to_customers": f"update raw.events set customer_id = {NOBODY} where event_id = 1",
    "stg_events_lies_in_the_past": "update raw.events set occurred_at = now() + interval '1 hour' where event_id = 2",
    # 30 events on each day of a month, but for the newest whole day.
    "stg_events_come_in_usual_number": (
        "insert into raw.events (event_id, session_id, event_type, channel, occurred_at, properties, _etl_run_id, "
        "_etl_synced_at) select 900000000 + n, gen_random_uuid(), 'page_view', 'web', "
        "date_trunc('day', now(), 'UTC') - (n % 28 + 2) * interval '1 day' + interval '1 hour', '{{}}', 1, now() "
        "from generate_series(1, 840) as n"
    ),
    "revenue_of_each_day_is_that_of_its_orders": "update marts.fct_orders set discount_usd = discount_usd + 1, "
    "tax_usd = tax_usd + 1 where order_id = (select min(order_id) from marts.fct_orders)",
    "payments_of_each_order_are_what_it_says_is_paid": "update marts.fct_payments set amount_usd = amount_usd + 1 "
    "where payment_id = (select min(payment_id) from marts.fct_payments where status = 'captured')",
    "orders_of_each_customer_are_those_of_the_fact": (
        "update marts.dim_customers set order_count = order_count + 1 where customer_id = 3"
    ),
    "fct_inventory_daily_is_never_negative": "update marts.fct_inventory_daily set reserved = -1 "
    "where ctid = (select min(ctid) from marts.fct_inventory_daily)",
}
# The same faults in rows that are gone from the source break nothing.
GONE = (
    "update raw.orders set total = total + 7, customer_id = {nobody}, _etl_deleted_at = now() where order_id = {order}",
    "update raw.inventory_levels set on_hand = -1, _etl_deleted_at = now() where (product_id, warehouse_code) = "
    "(select product_id, warehouse_code from raw.inventory_levels order by 1 desc, 2 desc limit 1)",
)


@pytest.fixture(scope="module")
def shop(source_server, target_server, tmp_path_factory):
    with open_shop(source_server, target_server, tmp_path_factory.mktemp("quality")) as opened:
        opened.fill()
        yield opened


def built_at(shop, model):
    return shop.query(f"select dbt_built_at from intermediate.dbt_builds where model_name = '{model}'")[0][0]


def test_broken_rule_stops_the_pipeline_until_its_rows_are_fixed(shop):
    shop.query(f"update raw.events set customer_id = {NOBODY} where event_id = 1")
    shop.query("update raw.orders set total = total + 1 where order_id in (1, 2, 3)")
    before = built_at(shop, "fct_orders")
    stopped = shop.make("pipeline", **WITHOUT_UNIT_TESTS)
    left = built_at(shop, "fct_orders")
    found = re.search(r"rule stg_orders_total_adds_up: (.*) \((.*)\); see them: (select .*)", stopped.stderr)
    rows = shop.query(found[3])
    shop.query("update raw.orders set total = total - 1 where order_id in (1, 2, 3)")
    mended = shop.make("pipeline", **WITHOUT_UNIT_TESTS)

    assert stopped.returncode == 1
    assert found[1] == "3 rows break it"
    assert found[2].startswith("The total of an order is the sum of its parts")
    assert found[3] == "select * from audit.stg_orders_total_adds_up"
    assert {row[0] for row in rows} == {1, 2, 3}
    assert re.search(r"not built, because they read what failed: .*fct_orders, .*fct_sales", stopped.stderr)
    assert "Traceback" not in stopped.stderr
    assert "marts.fct_orders" not in stopped.stderr
    assert left == before
    assert mended.returncode == 0, mended.stderr
    assert built_at(shop, "fct_orders") > before
    assert shop.query("select * from audit.stg_orders_total_adds_up") == []
    for finished in (stopped, mended):
        assert "warning: rule stg_events_refer_to_customers: 1 row breaks it (Events refer" in finished.stderr
    assert "1 warned" in mended.stderr
    shop.query("update raw.events set customer_id = null where event_id = 1")


def test_failed_model_is_reported_with_the_reason(shop):
    shop.query("alter table marts.fct_events add constraint nothing_new check (event_id < 0) not valid")
    shop.query(
        "insert into events (session_id, event_type, channel) values (gen_random_uuid(), 'page_view', 'web')",
        url=shop.source_url,
    )
    failed = shop.make("pipeline", **WITHOUT_TESTS)
    shop.query("alter table marts.fct_events drop constraint nothing_new")
    mended = shop.make("pipeline", **WITHOUT_TESTS)

    assert failed.returncode == 1
    assert re.search(r"fct_events: Database Error .*violates check constraint \"nothing_new\".*; see ", failed.stderr)
    assert "compiled code" not in failed.stderr
    assert "Traceback" not in failed.stderr
    assert mended.returncode == 0, mended.stderr


def test_freshness_shows_the_newest_run_age_and_the_next_step(shop):
    fresh = shop.make("freshness")
    shop.query("update etl.runs set ended_at = ended_at - interval '8 hours'")
    old = shop.make("freshness")
    shop.query("update etl.runs set ended_at = ended_at - interval '3 days'")
    stale = shop.make("freshness")
    shop.query("update etl.runs set status = 'failed'")
    never = shop.make("freshness")
    shop.query("update etl.runs set status = 'succeeded', ended_at = ended_at + interval '3 days 8 hours'")

    found = {"fresh": fresh, "old": old, "stale": stale, "never": never}
    codes = {name: finished.returncode for name, finished in found.items()}
    assert codes == {"fresh": 0, "old": 0, "stale": 1, "never": 1}
    assert fresh.stdout.startswith("raw is fresh: the newest run that succeeded ended 0.")
    assert "warning: raw is stale: expected a run within 6 hours, found: the newest" in old.stdout
    assert "raw is stale: expected a run within 2 days, found: the newest run that succeeded ended 80." in stale.stderr
    assert "found: no run has succeeded; run `make extract`" in never.stderr


def test_documentation_is_one_file_describing_every_mart(shop, tmp_path):
    finished = shop.succeed("docs", str(tmp_path / "site"))
    page = tmp_path / "site" / "index.html"
    html = page.read_text()
    marts = {
        node["name"]: node["description"]
        for node in shop.read_json("manifest.json")["nodes"].values()
        if node["resource_type"] == "model" and node["schema"] == "marts"
    }

    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert str(page) in finished.stdout
    assert len(marts) > 8
    assert {name for name, description in marts.items() if name not in html or description not in html} == set()


def test_missing_parent_breaks_no_rule_before_the_run_ends(shop):
    ((run_id,),) = shop.query("insert into etl.runs default values returning run_id")
    shop.query(
        f"insert into raw.payments select (jsonb_populate_record(p, jsonb_build_object("
        f"'payment_id', {NOBODY}, 'order_id', {NOBODY}, '_etl_run_id', {run_id}))).* "
        "from raw.payments as p order by payment_id limit 1"
    )
    within = shop.dbt("test", "--select", "stg_payments_refer_to_orders")
    shop.query(f"update etl.runs set status = 'succeeded', ended_at = clock_timestamp() where run_id = {run_id}")
    after = shop.dbt("test", "--select", "stg_payments_refer_to_orders")
    shop.query(f"delete from raw.payments where payment_id = {NOBODY}")

    assert within.returncode == 0, within.stdout
    assert after.returncode == 1
    assert shop.query("select payment_id from audit.stg_payments_refer_to_orders") == [(NOBODY,)]


def test_run_ending_between_two_facts_breaks_no_rule(shop):
    rule = "payments_of_each_order_are_what_it_says_is_paid"
    ((run_id,),) = shop.query(
        "insert into etl.runs (status, ended_at) values ('succeeded', clock_timestamp()) returning run_id"
    )
    shop.query(
        f"insert into raw.payments select (jsonb_populate_record(p, jsonb_build_object("
        f"'payment_id', {NOBODY}, '_etl_run_id', {run_id}))).* "
        "from raw.payments as p where status = 'captured' order by payment_id limit 1"
    )
    built = shop.dbt("run", "--select", "fct_payments")
    between = shop.dbt("test", "--select", rule)
    shop.query(f"update intermediate.dbt_builds set run_id = {run_id}")  # as if fct_orders had lost the payment
    after = shop.dbt("test", "--select", rule)
    shop.query(f"delete from raw.payments where payment_id = {NOBODY}")
    shop.query(f"delete from marts.fct_payments where payment_id = {NOBODY}")

    assert built.returncode == 0, built.stdout
    assert between.returncode == 0, between.stdout
    assert after.returncode == 1
    assert len(shop.query(f"select * from audit.{rule}")) == 1


def test_each_rule_finds_exactly_the_rows_that_break_it(shop):
    """Last of the module: it leaves the marts broken."""
    orders = [row[0] for row in shop.query("select order_id from raw.orders where delivered_at is not null order by 1")]
    for number, statement in enumerate(ONE_ROW_EACH.values()):
        shop.query(statement.format(order=orders[number + 5]))
    for number, statement in enumerate(GONE):
        shop.query(statement.format(order=orders[number], nobody=NOBODY))
    checked = shop.dbt("test", "--exclude-resource-type", "unit_test")
    broken = {
        result["unique_id"].split(".")[2]: result["failures"]
        for result in shop.read_json("run_results.json")["results"]
        if result["status"] != "pass" and result["unique_id"].startswith("test.")
    }

    assert checked.returncode == 1
    assert broken == dict.fromkeys(ONE_ROW_EACH, 1)
    for rule in broken:
        assert len(shop.query(f"select * from audit.{rule}")) == 1
