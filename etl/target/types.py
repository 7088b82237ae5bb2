"""Reads which types the target can hold."""

from __future__ import annotations

import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.model import QualifiedName
from etl.policy.column_types import FIRST_USER_OID, TargetTypes
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import read_sql

LIST_TYPES = read_sql(__package__, "list_types")


def read_types(connection: Connection) -> TargetTypes:
    """Return which types the target can hold, and how it compares their values."""
    with errors_of("target", "reading the types"), connection.cursor() as cursor:
        cursor.execute(LIST_TYPES, {"first_user_oid": FIRST_USER_OID})
        found = cursor.fetchall()
        names = {name for name, *_ in found}
        if not _reads_xml(cursor):
            names -= {"xml", "xml[]"}
    return TargetTypes(
        names=frozenset(names),
        major=connection.server_version // 10_000,
        unfit_for_keys=frozenset(name for name, can_be_key, _ in found if not can_be_key),
        equalities={
            name: QualifiedName(schema=own_equality[0], name=own_equality[1])
            for name, _, own_equality in found
            if own_equality
        },
    )


def _reads_xml(cursor: Cursor) -> bool:
    """Return whether the server can read xml values: without libxml, it has the type but reads no value."""
    try:
        cursor.execute("select '<a/>'::xml")
    except psycopg2.errors.FeatureNotSupported:
        return False
    return True
