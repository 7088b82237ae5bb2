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
from etl.postgres.sql import quote_name, read_sql

LIST_ORDERS = read_sql(__package__, "list_orders")
COMPARISONS = ("<", "<=", "=", ">=", ">")  # by strategy ("B-Tree Strategies" in the manual)
OPERATOR_NAME = re.compile(r"[-+*/<>=~!@#%^&|`?]+")


@dataclass(frozen=True, kw_only=True)
class KeyOrders:
    """The key columns of one table whose order is not that of pg_catalog's operators."""

    by_column: Mapping[str, KeyOrder] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)  # by column: why its values cannot be compared


def read_key_orders(cursor: Cursor, indexes: Sequence[int]) -> dict[int, KeyOrders]:
    """Return, by table, the orders of the columns of these indexes of keys.

    Those that pg_catalog's operators compare alike are left out.
    """
    if not indexes:
        return {}
    cursor.execute(LIST_ORDERS, {"indexes": list(indexes), "first_user_oid": FIRST_USER_OID})
    found: dict[int, tuple[dict[str, KeyOrder], dict[str, str]]] = {}
    for oid, column, class_name, schemas, names, hidden_schema, is_record, operand_type, *collation in cursor:
        orders, faults = found.setdefault(oid, ({}, {}))
        if len(names) != len(COMPARISONS) or not all(map(OPERATOR_NAME.fullmatch, names)):
            faults[column] = (
                f"its operator class {class_name} lacks some of the operators <, <=, =, >= and >, by which rows are "
                "sorted and found: add them on the source (alter operator family ... using btree add operator ...), or "
                "give the table another key"
            )
        elif hidden_schema is not None:
            faults[column] = (
                f"the operators that compare it are in schema {hidden_schema}: run on the source: grant usage on "
                f"schema {quote_name(hidden_schema)} to the role of SOURCE_DATABASE_URL"
            )
        operators = tuple(QualifiedName(schema=s, name=n) for s, n in zip(schemas, names, strict=True))
        orders[column] = KeyOrder(
            operators=None if is_record else operators,
            operand_type=operand_type,
            collation=None if collation == [None, None] else QualifiedName(schema=collation[0], name=collation[1]),
        )
    return {oid: KeyOrders(by_column=orders, faults=faults) for oid, (orders, faults) in found.items()}
