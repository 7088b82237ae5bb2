"""Simulates the daily work of the shop in its database: concurrent writers with real transactions.

Each writer draws activities by weight. Some transactions stay open for a while, and some roll back. Begin at `run`.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping

import psycopg2
from psycopg2.extensions import cursor as Cursor

from source_db.schema import SourceDatabaseError, is_applied

Activity = Callable[[Cursor, random.Random], bool]  # False: it found no row to work on
STAY_OPEN_SHARE, STAY_OPEN_SECONDS = 0.02, 1.5
ROLL_BACK_SHARE = 0.05

# Picks one row cheaply, without waiting for other writers.
PICK_ORDER = """
    select order_id, total from orders
    where order_id >= (select %s * max(order_id) from orders) and status = %s
    order by order_id limit 1 for update skip locked
"""
REFRESH_TOTALS = """
    update orders as o set
        subtotal = i.subtotal, discount = i.discount, tax = round(0.08 * (i.subtotal - i.discount), 2),
        shipping = case when i.subtotal >= 75 then 0 else 5.95 end,
        total = i.subtotal - i.discount + round(0.08 * (i.subtotal - i.discount), 2)
            + case when i.subtotal >= 75 then 0 else 5.95 end
    from (
        select coalesce(sum(quantity * unit_price), 0) as subtotal, coalesce(sum(discount), 0) as discount
        from order_items where order_id = %(order_id)s
    ) as i
    where o.order_id = %(order_id)s
"""
ADD_ITEM = """
    insert into order_items (order_id, product_id, quantity, unit_price, discount)
    select %s, product_id, %s, price, round(price * %s, 2)
    from products
    where product_id >= (select %s * max(product_id) from products)
    order by product_id limit 1
"""
ADD_EVENT = """
    insert into events (session_id, customer_id, event_type, product_id, channel, occurred_at)
    values (%s, %s, %s, %s, %s, now())
"""


def run(url: str, *, seconds: float, rate: float = 50, writers: int = 4, seed: int = 42) -> dict[str, int]:
    """Run `rate` transactions a second over all writers for `seconds`; return how often each activity was done.

    The counts are of activities that committed, and of `rolled_back`, `stayed_open` and `conflicts` (transactions that
    ended with a deadlock or a broken constraint). Raises SourceDatabaseError when the schema is missing, and the first
    error of a writer.
    """
    if not is_applied(url):
        raise SourceDatabaseError("the schema is missing: create and fill it with `python -m source_db seed`")
    deadline = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            counts.update(_write(url, deadline, rate / writers, random.Random(seed * 1000 + number)))  # noqa: S311
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), name=f"writer-{number}") for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return dict(counts)


def _write(url: str, deadline: float, rate: float, chance: random.Random) -> Counter[str]:
    counts: Counter[str] = Counter()
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    connection = psycopg2.connect(url, application_name="shop")
    try:
        with connection.cursor() as cursor:
            due = time.monotonic()
            while (now := time.monotonic()) < deadline:
                due += chance.expovariate(rate)
                time.sleep(max(0.0, min(due, deadline) - now))
                counts.update(_transact(connection, cursor, chance, chance.choices(names, weights)[0]))
    finally:
        connection.close()
    return counts


def _transact(
    connection: psycopg2.extensions.connection, cursor: Cursor, chance: random.Random, name: str
) -> list[str]:
    """Run one activity in one transaction; return the names to count."""
    try:
        is_done = ACTIVITIES[name](cursor, chance)
        notes = []
        if is_done and chance.random() < STAY_OPEN_SHARE:
            time.sleep(chance.random() * STAY_OPEN_SECONDS)
            notes.append("stayed_open")
        if chance.random() < ROLL_BACK_SHARE:
            connection.rollback()
            return [*notes, "rolled_back"]
        connection.commit()
    except (psycopg2.errors.DeadlockDetected, psycopg2.errors.IntegrityError):
        connection.rollback()
        return ["conflicts"]
    return [*notes, name] if is_done else []


def _sign_up(cursor: Cursor, chance: random.Random) -> bool:
    name = uuid.UUID(int=chance.getrandbits(128)).hex[:12]
    cursor.execute(
        "insert into customers (email, first_name, last_name, country, city) values (%s, %s, %s, 'US', 'Springfield')",
        (f"{name}.{time.time_ns()}@example.com", name[:5].title(), name[5:].title()),
    )
    return True


def _fill_cart(cursor: Cursor, chance: random.Random) -> bool:
    cursor.execute(
        "insert into orders (customer_id, channel) select customer_id, %s::sales_channel from customers "
        "where customer_id >= (select %s * max(customer_id) from customers) order by customer_id limit 1 "
        "returning order_id, customer_id",
        (chance.choice(("web", "mobile")), chance.random()),
    )
    row = cursor.fetchone()
    if row is None:
        return False
    order_id, customer_id = row
    for _ in range(chance.randrange(1, 4)):
        cursor.execute(ADD_ITEM, (order_id, chance.randrange(1, 4), chance.choice((0, 0, 0.1)), chance.random() ** 2))
    cursor.execute(REFRESH_TOTALS, {"order_id": order_id})
    cursor.execute(ADD_EVENT, (str(uuid.uuid4()), customer_id, "add_to_cart", None, "web"))
    return True


def _place(cursor: Cursor, chance: random.Random) -> bool:
    order_id, total = _pick(cursor, chance, "cart")
    if order_id is None:
        return False
    cursor.execute("update orders set status = 'placed', ordered_at = now() where order_id = %s", (order_id,))
    cursor.execute(
        "insert into payments (order_id, method, status, amount) values (%s, 'card', 'authorized', %s)",
        (order_id, total),
    )
    return True


def _pay(cursor: Cursor, chance: random.Random) -> bool:
    order_id, _ = _pick(cursor, chance, "placed")
    if order_id is None:
        return False
    cursor.execute("update orders set status = 'paid' where order_id = %s", (order_id,))
    cursor.execute(
        "update payments set status = 'captured', paid_at = now() where order_id = %s and status = 'authorized'",
        (order_id,),
    )
    return True


def _ship(cursor: Cursor, chance: random.Random) -> bool:
    order_id, _ = _pick(cursor, chance, "paid")
    if order_id is None:
        return False
    cursor.execute(
        "update orders set status = 'shipped', shipped_at = greatest(now(), ordered_at) where order_id = %s",
        (order_id,),
    )
    cursor.execute(
        "update inventory_levels as l set on_hand = greatest(l.on_hand - i.quantity, 0) "
        "from (select product_id, sum(quantity)::int as quantity from order_items where order_id = %s group by 1) as i "
        "where l.product_id = i.product_id and l.warehouse_code = 'EAS'",
        (order_id,),
    )
    return True


def _deliver(cursor: Cursor, chance: random.Random) -> bool:
    order_id, _ = _pick(cursor, chance, "shipped")
    if order_id is None:
        return False
    cursor.execute(
        "update orders set status = 'delivered', delivered_at = greatest(now(), shipped_at) where order_id = %s",
        (order_id,),
    )
    return True


def _return(cursor: Cursor, chance: random.Random) -> bool:
    order_id, total = _pick(cursor, chance, "delivered")
    if order_id is None or not total:
        return False
    cursor.execute("update orders set status = 'returned' where order_id = %s", (order_id,))
    cursor.execute(
        "insert into payments (order_id, method, status, amount, paid_at) values (%s, 'card', 'refunded', %s, now())",
        (order_id, -total),
    )
    return True


def _cancel(cursor: Cursor, chance: random.Random) -> bool:
    order_id, _ = _pick(cursor, chance, "placed")
    if order_id is None:
        return False
    cursor.execute("update orders set status = 'cancelled' where order_id = %s", (order_id,))
    cursor.execute("update payments set status = 'failed' where order_id = %s and status = 'authorized'", (order_id,))
    return True


def _drop_cart(cursor: Cursor, chance: random.Random) -> bool:
    order_id, _ = _pick(cursor, chance, "cart")
    if order_id is None:
        return False
    cursor.execute("delete from orders where order_id = %s", (order_id,))
    return True


def _forget_customer(cursor: Cursor, chance: random.Random) -> bool:
    cursor.execute(
        "delete from customers as c where c.customer_id = ("
        "select d.customer_id from customers as d where d.customer_id >= (select %s * max(customer_id) from customers) "
        "and not exists (select from orders as o where o.customer_id = d.customer_id) "
        "order by d.customer_id limit 1 for update skip locked)",
        (chance.random(),),
    )
    return cursor.rowcount == 1


def _change_price(cursor: Cursor, chance: random.Random) -> bool:
    cursor.execute(
        "update products set price = round(price * %s::numeric, 2) where product_id = "
        "(select product_id from products where product_id >= (select %s * max(product_id) from products) "
        "order by product_id limit 1 for update skip locked)",
        (chance.choice((0.9, 0.95, 1.05, 1.1)), chance.random()),
    )
    return cursor.rowcount == 1


def _restock(cursor: Cursor, chance: random.Random) -> bool:
    cursor.execute(
        "update inventory_levels set on_hand = on_hand + %s where (product_id, warehouse_code) = "
        "(select product_id, warehouse_code from inventory_levels "
        "where product_id >= (select %s * max(product_id) from inventory_levels) "
        "order by product_id, warehouse_code limit 1 for update skip locked)",
        (chance.randrange(10, 80), chance.random()),
    )
    return cursor.rowcount == 1


def _visit(cursor: Cursor, chance: random.Random) -> bool:
    session = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    for step in ("page_view", "product_view", "add_to_cart")[: chance.choice((1, 1, 2, 3))]:
        cursor.execute(ADD_EVENT, (session, None, step, None, chance.choice(("web", "mobile"))))
    return True


def _pick(cursor: Cursor, chance: random.Random, status: str) -> tuple[int | None, float]:
    """Lock one order in a state, near the newest; (None, 0) when there is none."""
    cursor.execute(PICK_ORDER, (1 - chance.random() ** 2 * 0.5, status))
    row = cursor.fetchone()
    if row is None:
        cursor.execute(PICK_ORDER, (0, status))
        row = cursor.fetchone()
    return row if row is not None else (None, 0)


ACTIVITIES: Mapping[str, Activity] = {
    "sign_up": _sign_up,
    "fill_cart": _fill_cart,
    "place": _place,
    "pay": _pay,
    "ship": _ship,
    "deliver": _deliver,
    "return": _return,
    "cancel": _cancel,
    "drop_cart": _drop_cart,
    "forget_customer": _forget_customer,
    "change_price": _change_price,
    "restock": _restock,
    "visit": _visit,
}
WEIGHTS: Mapping[str, int] = {
    "sign_up": 8,
    "fill_cart": 18,
    "place": 14,
    "pay": 12,
    "ship": 10,
    "deliver": 9,
    "return": 2,
    "cancel": 2,
    "drop_cart": 3,
    "forget_customer": 2,
    "change_price": 4,
    "restock": 6,
    "visit": 25,
}
