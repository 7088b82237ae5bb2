"""Random histories: the shop at work, changes of every kind, late commits, runs, and builds of parts or of all.

After each build, the models that were built equal a full refresh. At the end of a history, all do, the versions of
each row follow each other, and each fact has the cost and the tier that a plain lookup finds in them.
"""

import bisect
import os
import random
from dataclasses import dataclass, field

import psycopg2
import pytest

import etl
from etl.model import RunOptions
from source_db import simulate

SEED = int(os.environ.get("TIDEMARK_TEST_SEED", "1"))
TABLES = ("customers", "products", "orders", "order_items", "payments", "events", "inventory_levels")
KEYS = {
    "customers": "customer_id",
    "products": "product_id",
    "orders": "order_id",
    "order_items": "order_item_id",
    "payments": "payment_id",
    "events": "event_id",
    "inventory_levels": "product_id",
}
# The highest key that the changes may draw: a little above what the shop begins with, where it grows.
SIZES = {
    "customers": 40,
    "products": 10,
    "orders": 420,
    "order_items": 1100,
    "payments": 430,
    "events": 1130,
    "inventory_levels": 10,
}
# These may stay open while simulate is at work: they lock nothing that it waits for.
LATE_CHANGES = (
    "insert into orders (customer_id, status, channel, ordered_at) values ({customers}, 'placed', 'web', now())",
    "insert into orders (customer_id, status, channel, ordered_at) "
    "values ({customers}, 'placed', 'web', now() - interval '{orders} days')",
    "insert into events (session_id, event_type, channel) values (gen_random_uuid(), 'page_view', 'web')",
    "update customers set tier = '{tier}' where customer_id = {customers}",
    "update products set cost = {orders} / 10.0 where product_id = {products}",
    "update orders set customer_id = {customers} where order_id = {orders}",
)
CHANGES = (
    *LATE_CHANGES,
    "update customers set country = '{country}' where customer_id between {customers} and {customers} + 3",
    "update products set category = '{tier}', cost = cost + 1 where product_id >= {products}",
    "update orders set status = '{status}' where order_id between {orders} and {orders} + 5 and status <> 'cart'",
    "update orders set status = 'cart', ordered_at = null, shipped_at = null, delivered_at = null "
    "where order_id between {orders} and {orders} + 2",
    "update orders set status = 'placed', ordered_at = created_at where order_id >= {orders} and status = 'cart'",
    "update orders set ordered_at = ordered_at - interval '{products} days' where order_id between {orders} and "
    "{orders} + 9",
    "update orders set customer_id = {customers} where order_id between {orders} and {orders} + 3",
    "update order_items set order_id = {orders} where order_item_id between {order_items} and {order_items} + 3",
    "update order_items set product_id = {products}, quantity = quantity + 1 where order_item_id = {order_items}",
    "update payments set order_id = {orders} where payment_id between {payments} and {payments} + 2",
    "update payments set paid_at = now() where payment_id between {payments} and {payments} + 9",
    "update inventory_levels set on_hand = {orders}, reserved = 0 where product_id = {products}",
    "update inventory_levels set reserved = {products} where warehouse_code = 'EAS'",
    "insert into order_items (order_id, product_id, quantity, unit_price) values ({orders}, {products}, 1, 2.5)",
    "insert into payments (order_id, method, status, amount, paid_at) "
    "values ({orders}, 'card', 'captured', 5, now() - interval '1 hour')",
)


@dataclass
class History:
    """Plays one history, and knows what is open and when it was built."""

    warehouse: object
    chance: random.Random
    open: list = field(default_factory=list)
    played: list = field(default_factory=list)

    def play(self, steps):
        weights = {
            self.change: 8,
            self.delete: 3,
            self.bring_back: 2,
            self.stay_open: 2,
            self.commit_late: 2,
            self.simulate: 1,
            self.pass_a_day: 1,
            self.purge: 1,
            self.run: 6,
            self.run_some_tables: 1,
            self.load_anew: 1,
            self.build_during_a_run: 2,
            self.build: 4,
            self.build_some: 4,
            self.fail_to_build: 2,
        }
        for step in self.chance.choices(list(weights), list(weights.values()), k=steps):
            self.played.append(step.__name__)
            step()

    def end(self):
        for connection in self.open:
            connection.commit()
            connection.close()
        self.open.clear()
        self.run()
        self.build()

    def _statement(self, templates):
        values = {table: self.chance.randint(1, size) for table, size in SIZES.items()}
        return self.chance.choice(templates).format(
            **values,
            tier=self.chance.choice(("bronze", "silver", "gold", "platinum")),
            country=self.chance.choice(("DE", "FR", "IT")),
            status=self.chance.choice(("placed", "cancelled", "returned", "delivered")),
        )

    def _try_on_source(self, statement):
        try:
            self.warehouse.on_source(f"set lock_timeout = '100ms'; {statement}")
        except (psycopg2.errors.LockNotAvailable, psycopg2.errors.CheckViolation):
            self.played.append("nothing")

    def change(self):
        for _ in range(self.chance.randint(1, 4)):
            self._try_on_source(self._statement(CHANGES))

    def delete(self):
        table = self.chance.choice(TABLES)
        key, first = KEYS[table], self.chance.randint(1, SIZES[table])
        self._try_on_source(
            f"with gone as (delete from {table} where {key} between {first} and {first} + 1 returning *) "
            f"insert into clock.{table} select * from gone"
        )

    def bring_back(self):
        table = self.chance.choice(TABLES)
        self._try_on_source(
            f"insert into {table} select * from clock.{table} on conflict do nothing; truncate clock.{table}"
        )

    def stay_open(self):
        connection = psycopg2.connect(self.warehouse.source_url)
        with connection.cursor() as cursor:
            cursor.execute("set lock_timeout = '100ms'")
            connection.commit()
            try:
                cursor.execute(self._statement(LATE_CHANGES))
            except psycopg2.errors.LockNotAvailable:
                connection.rollback()
        self.open.append(connection)

    def commit_late(self):
        if self.open:
            connection = self.open.pop(self.chance.randrange(len(self.open)))
            connection.commit()
            connection.close()

    def simulate(self):
        simulate.run(self.warehouse.source_url, seconds=0.5, rate=200, seed=self.chance.randrange(10**6))

    def pass_a_day(self):
        self.warehouse.pass_days(self.chance.randint(1, 3))

    def purge(self):
        self.warehouse.tombstone_days = self.chance.choice(("null", "0.0000000001"))

    def run(self):
        self.warehouse.replicate(allow_deletes=True)

    def run_some_tables(self):
        self.warehouse.replicate(*self.chance.sample(TABLES, 3), allow_deletes=True)

    def load_anew(self):
        self.warehouse.replicate(self.chance.choice(TABLES), full_refresh=True, allow_deletes=True)

    def build(self):
        self.warehouse.build_chain()
        self.warehouse.assert_equals_full_refresh(after=self.played)

    def build_some(self):
        models = [*self.warehouse.dbt.snapshots, *self.warehouse.dbt.rebuilt]
        chosen = self.chance.choice(
            (
                self.warehouse.dbt.snapshots,
                self.warehouse.dbt.facts,
                list(self.warehouse.dbt.rebuilt),
                [self.chance.choice(models)],
                self.chance.sample(models, 4),
            )
        )
        self.played.append(chosen)
        self.warehouse.build(*chosen)
        rebuilt = [model for model in chosen if model in self.warehouse.dbt.rebuilt]
        if rebuilt:
            self.warehouse.assert_equals_full_refresh(*rebuilt, after=self.played)

    def build_during_a_run(self):
        """Build when the run has finished a table; others may be at work, or come later.

        The clock of the warehouse is behind for this run, if days have passed.
        """
        left = [self.chance.randrange(len(TABLES))]

        def observe(event):
            if event.kind == "table_finished":
                left[0] -= 1
                if left[0] == 0:
                    self.warehouse.build_chain()

        options = RunOptions(reconcile=True, allow_deletes=True)
        result = etl.run(self.warehouse.settings, observe=observe, options=options)
        assert not result.has_failures, result

    def fail_to_build(self):
        model = self.chance.choice(list(self.warehouse.dbt.rebuilt))
        relation, _ = self.warehouse.dbt.rebuilt[model]
        self.warehouse.query(f"alter table {relation} add constraint no_more check (false) not valid")
        _, log = self.warehouse.try_to_build(*self.warehouse.dbt.snapshots, *self.warehouse.dbt.rebuilt)
        self.warehouse.query(f"alter table {relation} drop constraint no_more")
        assert "ERROR=0" in log or "no_more" in log, log


def start(warehouse, seed):
    warehouse.on_source(
        "do $$ declare c record; begin for c in select conrelid::regclass as child, conname from pg_constraint "
        "where contype = 'f' loop execute format('alter table %s drop constraint %I', c.child, c.conname); "
        "end loop; end $$"
    )
    for table in TABLES:
        warehouse.on_source(f"create table clock.{table} as select * from {table} where false")
    return History(warehouse, random.Random(seed))


def versions_by_key(warehouse, history, keys, columns):
    found = {}
    for row in warehouse.query(
        f"select array[{keys}]::text[], is_deleted, valid_from, valid_to, {columns} "
        f"from intermediate.{history} order by {keys}, valid_from"
    ):
        found.setdefault(tuple(row[0]), []).append(row[1:])
    return found


HISTORIES = {
    "int_customers_history": ("customers", "customer_id", "tier, country_code"),
    "int_products_history": ("products", "product_id", "cost_usd, category"),
    "int_inventory_history": ("inventory_levels", "product_id, warehouse_code", "on_hand, reserved"),
}


def assert_versions_follow_each_other(warehouse):
    for history, (table, keys, columns) in HISTORIES.items():
        versions = versions_by_key(warehouse, history, keys, columns)
        alive = {
            tuple(key)
            for (key,) in warehouse.query(
                f"select array[{keys}]::text[] from raw.{table} where _etl_deleted_at is null"
            )
        }

        assert alive <= versions.keys()
        for key, followed in versions.items():
            begins = [valid_from for _, valid_from, _, *_ in followed]
            ends = [valid_to for _, _, valid_to, *_ in followed]
            assert ends == [*begins[1:], None], (history, key)
            assert all(begin < end for begin, end in zip(begins[:-1], ends[:-1], strict=True)), (history, key)
            assert followed[-1][0] == (key not in alive), (history, key)


def assert_facts_are_as_of_the_order(warehouse):
    def find(versions, instant):
        """The last version that had begun, or the first."""
        if versions is None:
            return (None, None)
        position = bisect.bisect_right([valid_from for _, valid_from, *_ in versions], instant)
        return versions[max(position - 1, 0)][3:]

    customers = versions_by_key(warehouse, "int_customers_history", "customer_id", "tier, country_code")
    products = versions_by_key(warehouse, "int_products_history", "product_id", "cost_usd, category")
    sales = warehouse.query(
        "select product_id::text, customer_id::text, ordered_at, quantity, cost_usd, product_category, customer_tier, "
        "customer_country_code from marts.fct_sales"
    )
    assert len(sales) > 500
    for product_id, customer_id, ordered_at, quantity, *found in sales:
        cost, category = find(products.get((product_id,)), ordered_at)
        tier, country = find(customers.get((customer_id,)), ordered_at)
        assert [cost and cost * quantity, category, tier, country] == found
    orders = warehouse.query(
        "select customer_id::text, ordered_at, customer_tier, customer_country_code from marts.fct_orders"
    )
    for customer_id, ordered_at, *found in orders:
        assert list(find(customers.get((customer_id,)), ordered_at)) == found


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(SEED, SEED + (60 if metafunc.config.getoption("--long") else 2)))


@pytest.mark.has_long_form
def test_after_any_history_a_build_equals_a_full_refresh(warehouse, seed, is_long):
    history = start(warehouse, seed)
    history.play(60 if is_long else 14)
    history.end()

    assert_versions_follow_each_other(warehouse)
    assert_facts_are_as_of_the_order(warehouse)
    placed = warehouse.on_source("select order_id from orders where status <> 'cart' order by 1")
    assert warehouse.query("select order_id from marts.fct_orders order by 1") == placed
