"""One change, one run, one build each, compared at once: a later change could hide what an earlier one missed."""

import pytest

FACTS = {"fct_orders", "fct_sales", "fct_events", "fct_payments", "fct_inventory_daily"}


def source(statement):
    """The step that changes the source by this statement."""

    def step(warehouse):
        warehouse.on_source(statement)

    return step


def without_constraints(table, statement):
    """The step that changes the source by this statement, though other tables refer to the rows of that table."""
    return source(
        f"do $$ declare c record; begin for c in select conrelid::regclass as child, conname from pg_constraint "
        f"where contype = 'f' and confrelid = '{table}'::regclass loop "
        f"execute format('alter table %s drop constraint %I', c.child, c.conname); end loop; end $$; {statement}"
    )


def come_back(table, condition, meanwhile=""):
    """The step in which rows are deleted, built without, and inserted again as they were."""

    def step(warehouse):
        without_constraints(table, f"create table clock.gone as select * from {table} where {condition}")(warehouse)
        warehouse.on_source(f"delete from {table} where {condition}; {meanwhile}")
        warehouse.replicate()
        warehouse.build_chain()
        warehouse.assert_equals_full_refresh(after=f"rows of {table} were deleted")
        found = warehouse.fingerprints()
        warehouse.on_source(f"insert into {table} select * from clock.gone; {meanwhile}")
        return found

    return step


def place_order(product_id=1, customer_id=1):
    return (
        f"with placed as (insert into orders (customer_id, status, channel, ordered_at) "
        f"values ({customer_id}, 'placed', 'web', clock_timestamp()) returning order_id) "
        f"insert into order_items (order_id, product_id, quantity, unit_price) "
        f"select placed.order_id, {product_id}, 2, 9.99 from placed;"
    )


def cost_between_sales(warehouse):
    """A product is sold, costs something else, and is sold again."""
    for cost in (4, 5):
        warehouse.on_source(f"update products set cost = {cost} where product_id = 1")
        warehouse.on_source(place_order())
    warehouse.replicate()
    warehouse.build_chain()
    warehouse.on_source(f"update products set cost = 6 where product_id = 1; {place_order()}")


def stock_over_days(warehouse):
    """Stock changes several times between two builds, on several days."""
    for on_hand in (3, 4, 5):
        warehouse.on_source(f"update inventory_levels set on_hand = {on_hand} where product_id <= 4")
        warehouse.replicate()
        warehouse.pass_days(1)
        warehouse.replicate()


def stock_sold_out_and_back(warehouse):
    """Stock changes and returns to what it was on the same day, then days pass."""
    warehouse.on_source("update inventory_levels set on_hand = on_hand + 7")
    warehouse.replicate()
    warehouse.on_source("update inventory_levels set on_hand = on_hand - 7")
    warehouse.pass_days(2)


def stock_gone_for_days(warehouse):
    """Stock is deleted, days pass with and without builds, and it is back."""
    warehouse.on_source("create table clock.stock as select * from inventory_levels where product_id = 3")
    warehouse.on_source("delete from inventory_levels where product_id = 3")
    warehouse.replicate()
    warehouse.build_chain()
    warehouse.pass_days(2)
    warehouse.replicate()
    warehouse.build_chain()
    warehouse.pass_days(2)
    warehouse.on_source("insert into inventory_levels select * from clock.stock")


def several_runs(warehouse):
    """An order goes through its states, a run after each, before dbt builds."""
    for status in ("cancelled", "returned", "placed"):
        warehouse.on_source(f"update orders set status = '{status}' where order_id between 80 and 90")
        warehouse.replicate()


def moves_twice(warehouse):
    """A line moves on and on: the fact is built in one order, and the next build finds it in a third."""
    warehouse.on_source("update order_items set order_id = order_id + 1 where order_item_id between 100 and 110")
    warehouse.replicate()
    warehouse.build("fct_orders")
    warehouse.on_source("update order_items set order_id = order_id + 1 where order_item_id between 100 and 110")
    warehouse.replicate()
    warehouse.on_source("update order_items set order_id = order_id + 1 where order_item_id between 100 and 110")


def reset(*tables):
    """The step in which tables are reloaded, after rows were changed behind the watermark and deleted."""

    def step(warehouse):
        warehouse.on_source(
            "set session_replication_role = replica; "
            "update orders set discount = 1, total = subtotal - 1 + tax + shipping where order_id % 7 = 0; "
            "update products set cost = cost * 3 where product_id % 2 = 0; "
            "delete from payments where payment_id % 9 = 0; delete from events where event_id % 9 = 0; "
            "update inventory_levels set reserved = reserved + 1; "
            "set session_replication_role = default; " + place_order(product_id=2)
        )
        warehouse.replicate(*tables, full_refresh=True)

    return step


def purged(warehouse):
    """Rows are deleted, built without, and purged; some of their keys are used again."""
    warehouse.on_source("create table clock.purged as select * from order_items where order_item_id % 5 = 0")
    warehouse.on_source(
        "delete from order_items where order_item_id % 5 = 0; delete from orders where order_id % 11 = 0; "
        "delete from inventory_levels where product_id = 2; delete from events where event_id % 11 = 0"
    )
    warehouse.replicate()
    warehouse.build_chain()
    warehouse.assert_equals_full_refresh(after="rows were deleted")
    tombstones = "select count(*) from raw.order_items where _etl_deleted_at is not null"
    had = warehouse.query(tombstones)
    warehouse.tombstone_days = "0.0000000001"
    warehouse.replicate()
    assert had > [(50,)]
    assert warehouse.query(tombstones) == [(0,)]
    warehouse.build_chain()
    warehouse.assert_equals_full_refresh(after="tombstones were purged")
    warehouse.on_source(
        "insert into order_items select * from clock.purged as p "
        "where exists (select from orders as o where o.order_id = p.order_id)"
    )


STEPS = {
    "a cost changes": cost_between_sales,
    "a product gets another category": source(
        f"update products set category = 'Other' where product_id = 1; {place_order()}"
    ),
    "a product is deleted, sold, and returns": come_back(
        "products", "product_id = 4", meanwhile=place_order(product_id=4)
    ),
    "a product comes after the sale of it": without_constraints(
        "products",
        place_order(product_id=990)
        + "insert into products (product_id, sku, name, category, price, cost) values (990, 'N', 'New', 'Toys', 9, 3)",
    ),
    "a customer changes tier": source(
        f"update customers set tier = 'platinum' where customer_id = 1; {place_order()} "
        "update customers set tier = 'gold' where customer_id = 1"
    ),
    "a customer moves abroad": source(f"update customers set country = 'IT' where customer_id = 1; {place_order()}"),
    "a customer is deleted, orders, and returns": come_back(
        "customers", "customer_id = 3", meanwhile=place_order(customer_id=3)
    ),
    "a customer's row comes after the order": without_constraints("customers", place_order(customer_id=990)),
    "an old order is placed late": source(
        "insert into orders (customer_id, status, channel, ordered_at) "
        "select customer_id, 'placed', 'web', min(ordered_at) - interval '10 days' from orders "
        "where ordered_at is not null group by customer_id order by count(*) desc limit 1"
    ),
    "an order is placed before the customer's history begins": source(
        "insert into orders (customer_id, status, channel, ordered_at) "
        "select customer_id, 'placed', 'web', created_at - interval '1 year' from customers where customer_id = 7; "
        "update customers set tier = 'gold' where customer_id = 7"
    ),
    "an order moves to another customer": source(
        "update orders set customer_id = customer_id % 10 + 1 where order_id in (20, 40, 60)"
    ),
    "an order becomes a cart again": source(
        "update orders set status = 'cart', ordered_at = null, shipped_at = null, delivered_at = null "
        "where order_id in (21, 41)"
    ),
    "a cart is placed": source("update orders set status = 'placed', ordered_at = created_at where status = 'cart'"),
    "an order is dated back": source(
        "update orders set ordered_at = ordered_at - interval '500 days' where order_id between 300 and 310"
    ),
    "an order is credited to a campaign": source("update orders set campaign_id = 1 where order_id between 60 and 70"),
    "an order is deleted": source("delete from orders where order_id between 50 and 55"),
    "an order is deleted and returns": come_back("orders", "order_id between 44 and 48"),
    "an order is deleted and its lines stay": without_constraints("orders", "delete from orders where order_id = 95"),
    "a line moves to another order": source(
        "update order_items set order_id = order_id + 1 where order_item_id in (1, 5, 9)"
    ),
    "a line moves on and on": moves_twice,
    "a line gets another product and quantity": source(
        "update order_items set product_id = product_id % 5 + 1, quantity = quantity + 1 where order_item_id < 9"
    ),
    "a line is deleted": source("delete from order_items where order_item_id in (30, 31)"),
    "a line is deleted and returns": come_back("order_items", "order_item_id in (32, 33)"),
    "a refund arrives late": source(
        "insert into payments (order_id, method, status, amount, paid_at) "
        "select order_id, 'card', 'refunded', -1, now() - interval '300 days' from orders order by 1 limit 1"
    ),
    "a payment moves to another order": source(
        "update payments set order_id = order_id + 1 where payment_id in (3, 6)"
    ),
    "a payment is deleted": source("delete from payments where payment_id in (70, 71)"),
    "a payment is deleted and returns": come_back("payments", "payment_id in (72, 73)"),
    "an event arrives": source(
        "insert into events (session_id, event_type, channel, occurred_at) "
        "values (gen_random_uuid(), 'page_view', 'web', now() - interval '90 days')"
    ),
    "an event is deleted": source("delete from events where event_id between 100 and 110"),
    "stock changes": source("update inventory_levels set on_hand = 1, reserved = 1"),
    "stock changes over days": stock_over_days,
    "stock changes and is as before": stock_sold_out_and_back,
    "days pass": lambda w: w.pass_days(3),
    "stock is deleted": source("delete from inventory_levels where product_id = 1"),
    "stock is deleted and returns at once": come_back("inventory_levels", "product_id = 2"),
    "stock is deleted and returns after days": stock_gone_for_days,
    "stock is kept in another warehouse": source(
        "update inventory_levels set warehouse_code = 'NEW' where product_id = 5 and warehouse_code = 'EAS'"
    ),
    "several runs come between two builds": several_runs,
    "tables are reloaded": reset("orders", "products", "payments", "events", "inventory_levels"),
    "tombstones are purged": purged,
}


def test_the_facts_are_found_in_what_dbt_has_parsed(dbt):
    assert set(dbt.facts) == FACTS


@pytest.mark.parametrize("name", STEPS)
def test_a_change_reaches_the_rows_that_depend_on_it(warehouse, name):
    before = warehouse.fingerprints()
    meanwhile = STEPS[name](warehouse) or before
    warehouse.replicate()
    warehouse.build_chain()

    assert meanwhile != warehouse.fingerprints(), "no fact has changed: the step shows nothing"
    warehouse.assert_equals_full_refresh(after=name)
