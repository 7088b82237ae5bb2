"""Loads the example source with an invented history, by COPY, in one transaction and constant memory."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from source_db.history import Row, Shop
from source_db.schema import TABLES, SourceDatabaseError, session

CHUNK_ROWS = 5_000
COLUMNS = {
    "customers": "customer_id email first_name last_name phone country city tier marketing_opt_in attributes",
    "products": "product_id sku name category price cost is_active attributes",
    "campaigns": "campaign_id name channel budget spend starts_on ends_on",
    "orders": "order_id customer_id campaign_id status channel ordered_at shipped_at delivered_at "
    "subtotal discount tax shipping total",
    "order_items": "order_item_id order_id product_id quantity unit_price discount",
    "payments": "payment_id order_id method status amount paid_at",
    "inventory_levels": "product_id warehouse_code on_hand reserved reorder_point",
    "events": "event_id session_id customer_id event_type product_id campaign_id channel occurred_at properties",
}
IDENTITIES = tuple(table for table in TABLES if table != "inventory_levels")
# Characters that have a meaning in the text format of COPY.
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})

Progress = Callable[[str, int], None]
Item = TypeVar("Item")


def load(
    url: str,
    *,
    scale: float = 1,
    seed: int = 42,
    until: dt.datetime | None = None,
    on_progress: Progress | None = None,
) -> dict[str, int]:
    """Fill an empty schema and return the rows of each table; all or nothing.

    The history covers the two years before `until` (default: today 00:00 UTC); the same seed, scale and `until`
    give the same rows. `on_progress` is called with a table and its number of rows so far. Raises SourceDatabaseError
    when the tables hold rows.
    """
    if not is_empty(url):
        raise SourceDatabaseError("the tables hold rows already: empty them first, or seed another database")
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    shop = Shop(scale=scale, seed=seed, until=until or today)
    counts: dict[str, int] = {}
    with session(url) as connection, connection.cursor() as cursor:
        for table, rows in _batches(shop):
            _copy(cursor, table, rows)
            counts[table] = counts.get(table, 0) + len(rows)
            if on_progress:
                on_progress(table, counts[table])
        for table in IDENTITIES:
            _move_identity(cursor, table)
    with session(url) as connection, connection.cursor() as cursor:
        cursor.execute("analyze")
    return counts


def is_empty(url: str) -> bool:
    """Return whether every table is empty."""
    with session(url) as connection, connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(sql.SQL("select exists (select from public.{})").format(sql.Identifier(table)))
            row = cursor.fetchone()
            if row and row[0]:
                return False
    return True


def _batches(shop: Shop) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows by table in chunks, parents before children."""
    yield from _chunks("customers", shop.customer_rows())
    yield from _chunks("products", shop.product_rows())
    yield from _chunks("campaigns", shop.campaign_rows())
    for chunk in _chunked(shop.order_rows()):
        yield "orders", [rows.order for rows in chunk]
        yield "order_items", [item for rows in chunk for item in rows.items]
        yield "payments", [payment for rows in chunk for payment in rows.payments]
    yield from _chunks("inventory_levels", shop.inventory_rows())
    yield from _chunks("events", shop.event_rows())


def _chunks(table: str, rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    return ((table, chunk) for chunk in _chunked(rows))


def _chunked(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        yield chunk


def _copy(cursor: Cursor, table: str, rows: list[Row]) -> None:
    columns = COLUMNS[table].split()
    if table != "events":
        columns += ["created_at", "updated_at"]
    text = io.StringIO("".join("\t".join(map(_field, row)) + "\n" for row in rows))
    statement = sql.SQL("copy public.{} ({}) from stdin").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    cursor.copy_expert(statement, text)


def _field(value: object) -> str:
    if value is None:
        return "\\N"
    return str(value).translate(ESCAPES)


def _move_identity(cursor: Cursor, table: str) -> None:
    """Set the sequence so that the next row gets the number after the largest."""
    key = COLUMNS[table].split()[0]
    cursor.execute(
        sql.SQL("select pg_catalog.setval(pg_get_serial_sequence(%s, %s), greatest(max({}), 1)) from public.{}").format(
            sql.Identifier(key), sql.Identifier(table)
        ),
        (f"public.{table}", key),
    )
