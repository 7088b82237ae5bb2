"""Reads how the source compares the values of key columns: by the operator classes of the indexes of the keys.

search_path is empty, so an operator's name finds only operators of pg_catalog: for a type of an extension, those of a
type that its values can be cast to, which may put them in another order, or none. Begin at `read_key_orders`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from psycopg2.extensions import cursor as Cursor

from etl.model import KeyOrder, QualifiedName
from etl.policy.column_types import FIRST_USER_OID
from etl.postgres.sql import read_sql

LIST_KEY_ORDERS = read_sql(__package__, "list_key_orders")
COMPARISONS = ("<", "<=", "=", ">=", ">")  # by strategy ("B-Tree Strategies" in the manual)
OPERATOR_NAME = re.compile(r"[-+*/<>=~!@#%^&|`?]+")


@dataclass(frozen=True, kw_only=True)
class KeyOrders:
    """The key columns of one table whose order is not that of pg_catalog's operators."""

    by_column: Mapping[str, KeyOrder] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)  # operator class by column: operators are missing


def read_key_orders(cursor: Cursor, oids: Sequence[int]) -> dict[int, KeyOrders]:
    """Return, by table, the orders of key columns; those that pg_catalog's operators compare alike are left out."""
    cursor.execute(LIST_KEY_ORDERS, {"oids": list(oids), "first_user_oid": FIRST_USER_OID})
    found: dict[int, tuple[dict[str, KeyOrder], dict[str, str]]] = {}
    for oid, column, class_name, schemas, names, is_record, operand_type, collation_schema, collation in cursor:
        orders, incomplete = found.setdefault(oid, ({}, {}))
        if len(names) != len(COMPARISONS) or not all(map(OPERATOR_NAME.fullmatch, names)):
            incomplete[column] = class_name
            continue
        operators = tuple(QualifiedName(schema=s, name=n) for s, n in zip(schemas, names, strict=True))
        orders[column] = KeyOrder(
            operators=None if is_record else operators,
            operand_type=operand_type,
            collation=QualifiedName(schema=collation_schema, name=collation) if collation else None,
        )
    return {oid: KeyOrders(by_column=orders, incomplete=incomplete) for oid, (orders, incomplete) in found.items()}
