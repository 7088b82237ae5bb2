"""The rule of the facts: after any history, an incremental build equals a full refresh, row for row."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from etl import pipeline
from etl.config import DatabaseUrl, Settings, load_settings
from source_db import schema, seed, simulate

PROJECT = Path(__file__).parents[3] / "dbt"
FACTS = {"fct_sales": "order_item_id", "fct_orders": "order_id"}
SEED = int(os.environ.get("TIDEMARK_TEST_SEED", "1"))


@dataclass
class Warehouse:
    source_url: str
    target_url: str
    folder: Path

    def query(self, statement, *parameters, url=None):
        connection = psycopg2.connect(url or self.target_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def on_source(self, statement, *parameters):
        return self.query(statement, *parameters, url=self.source_url)

    @property
    def settings(self) -> Settings:
        return load_settings(
            {
                "SOURCE_DATABASE_URL": self.source_url,
                "TARGET_DATABASE_URL": DatabaseUrl(self.target_url),
                "ETL_FENCE_MARGIN_SECONDS": "0",
                "ETL_FENCE_WAIT_SECONDS": "0.1",
            }
        )

    def replicate(self):
        result = pipeline.run(self.settings, observe=lambda event: None)
        assert not result.has_failures, result

    def delete(self, table, condition):
        """Delete rows of the source, and make them tombstones of a run of its own in raw."""
        self.on_source(f"delete from {table} where {condition}")
        self.query(
            f"with run as (insert into etl.runs (status, ended_at) values ('succeeded', now()) returning run_id) "
            f"update raw.{table} set _etl_deleted_at = now(), _etl_run_id = run.run_id from run where {condition}"
        )

    def dbt(self, *arguments):
        parts = psycopg2.extensions.parse_dsn(self.target_url)
        return subprocess.run(
            [
                *(sys.executable, "-c", "import sys; from dbt.cli.main import cli; sys.exit(cli())"),
                *arguments,
                *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
                *("--target-path", str(self.folder / "target"), "--log-path", str(self.folder / "logs")),
            ],
            env={
                **os.environ,
                "DBT_HOST": parts["host"],
                "DBT_PORT": parts["port"],
                "DBT_USER": parts["user"],
                "DBT_ENV_SECRET_PASSWORD": parts["password"],
                "DBT_DBNAME": parts["dbname"],
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, *arguments):
        finished = self.dbt("run", "--warn-error", *arguments)
        assert finished.returncode == 0, finished.stdout

    def facts(self):
        """Return every row of every fact, as text, without the time at which it was built."""
        return {
            fact: dict(
                self.query(f"select {key}, (to_jsonb(f) - 'dbt_built_at')::text from marts.{fact} as f order by {key}")
            )
            for fact, key in FACTS.items()
        }

    def assert_equals_full_refresh(self, after="the history"):
        incremental = self.facts()
        self.build("--full-refresh", "--select", *FACTS)
        full = self.facts()
        for fact in FACTS:
            assert len(full[fact]) > 100
            different = {
                key for key in incremental[fact] | full[fact] if incremental[fact].get(key) != full[fact].get(key)
            }
            assert not different, f"{fact} after {after}: {len(different)} rows, such as {sorted(different)[:3]}"


@pytest.fixture
def warehouse(source_url, target_url, tmp_path):
    schema.apply(source_url)
    seed.load(source_url, scale=0.02)
    found = Warehouse(source_url=source_url, target_url=target_url, folder=tmp_path)
    found.replicate()
    found.build()
    return found


def test_random_histories_with_late_commits_build_what_a_full_refresh_builds(warehouse):
    chance = random.Random(SEED)
    for _ in range(2):
        late = psycopg2.connect(warehouse.source_url)
        with late.cursor() as cursor:
            cursor.execute(
                "update orders set status = 'cancelled' where order_id = "
                "(select order_id from orders where status = 'delivered' order by order_id limit 1)"
            )
            for _ in range(2):
                simulate.run(warehouse.source_url, seconds=1, rate=150, seed=chance.randrange(10**6))
                warehouse.replicate()
        late.commit()
        late.close()
        warehouse.build()
        warehouse.replicate()
        warehouse.build()
        warehouse.assert_equals_full_refresh()


STEPS = {
    "a cost changes": lambda w: w.on_source("update products set cost = cost + 1 where product_id <= 5"),
    "a customer changes tier": lambda w: w.on_source("update customers set tier = 'platinum' where customer_id <= 3"),
    "a refund arrives late": lambda w: w.on_source(
        "insert into payments (order_id, method, status, amount, paid_at) "
        "select order_id, 'card', 'refunded', -1, now() - interval '300 days' from orders order by 1 limit 1"
    ),
    "an old order is placed late": lambda w: w.on_source(
        "insert into orders (customer_id, status, channel, ordered_at) "
        "select customer_id, 'placed', 'web', min(ordered_at) - interval '10 days' from orders "
        "where ordered_at is not null group by customer_id order by count(*) desc limit 1"
    ),
    "a line moves to another order": lambda w: w.on_source(
        "update order_items set order_id = order_id + 1 where order_item_id in (1, 5, 9)"
    ),
    "a payment moves to another order": lambda w: w.on_source(
        "update payments set order_id = order_id + 1 where payment_id in (3, 6)"
    ),
    "an order moves to another customer": lambda w: w.on_source(
        "update orders set customer_id = customer_id % 10 + 1 where order_id in (20, 40, 60)"
    ),
    "an order becomes a cart again": lambda w: w.on_source(
        "update orders set status = 'cart', ordered_at = null, shipped_at = null, delivered_at = null "
        "where order_id in (21, 41)"
    ),
    "a line is deleted": lambda w: w.delete("order_items", "order_item_id in (30, 31)"),
    "an order is deleted": lambda w: w.delete("orders", "order_id = 50"),
    "a payment is deleted": lambda w: w.delete("payments", "payment_id in (70, 71)"),
}


def test_each_kind_of_change_reaches_the_rows_that_depend_on_it(warehouse):
    """One change, one run, one build each, compared at once: a later change could hide what an earlier one missed."""
    idle = []
    for name, step in STEPS.items():
        before = warehouse.facts()
        step(warehouse)
        warehouse.replicate()
        warehouse.build("--select", *FACTS)
        if warehouse.facts() == before:
            idle.append(name)
        warehouse.assert_equals_full_refresh(name)

    assert idle == []


def test_a_build_after_nothing_changed_writes_no_fact(warehouse):
    versions = "select ctid::text, xmin::text, order_id from marts.fct_orders order by order_id"
    before = warehouse.query(versions)
    warehouse.replicate()
    warehouse.build()

    assert len(before) > 100
    assert warehouse.query(versions) == before


def test_rows_of_a_run_in_progress_are_read_again_by_the_next_build(warehouse):
    """The run has committed one batch when a build comes by, and commits another afterwards."""
    (run_id,) = warehouse.query("insert into etl.runs default values returning run_id")[0]
    touch = "update raw.orders set status = 'returned', _etl_run_id = %s where order_id = %s"
    warehouse.query(touch, run_id, 100)
    warehouse.build("--select", *FACTS)
    warehouse.query(touch, run_id, 101)
    warehouse.query("update etl.runs set status = 'succeeded', ended_at = now() where run_id = %s", run_id)
    warehouse.build("--select", *FACTS)

    warehouse.assert_equals_full_refresh()


def test_a_build_that_failed_half_way_is_made_good_by_the_next(warehouse):
    warehouse.on_source("update orders set status = 'returned' where order_id between 100 and 120")
    warehouse.replicate()
    warehouse.query(
        "alter table marts.fct_sales add constraint no_returns check (order_status <> 'returned') not valid"
    )
    failed = warehouse.dbt("run", "--select", *FACTS)
    warehouse.query("alter table marts.fct_sales drop constraint no_returns")
    warehouse.build("--select", *FACTS)

    assert failed.returncode == 1
    assert "no_returns" in failed.stdout
    warehouse.assert_equals_full_refresh()


def test_all_models_and_tests_of_the_project_pass_without_a_warning(warehouse):
    finished = warehouse.dbt("build", "--warn-error", "--show-all-deprecations")

    assert finished.returncode == 0, finished.stdout
    assert "WARN=0 ERROR=0 SKIP=0" in finished.stdout
