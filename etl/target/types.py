"""Reads which types the target can hold."""

from __future__ import annotations

import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.policy.column_types import FIRST_USER_OID, TargetTypes
from etl.postgres.error_translation import errors_of

# Built-in types and those of extensions: a user-defined type may differ from one of the same name on the source. The
# owner of a type can give it casts, which would run as this role, and the owner of an extension can add types to it: a
# type counts only if it belongs to a superuser, to the owner of the database or to this role.
LIST_TYPES = """
    select pg_catalog.format_type(t.oid, null)
    from pg_catalog.pg_type as t
    where t.typtype in ('b', 'r', 'm')
        and (
            t.oid < %s
            or exists (
                select from pg_catalog.pg_depend as d
                where d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
            ) and (
                t.typowner = current_user::regrole
                or t.typowner in (select r.oid from pg_catalog.pg_roles as r where r.rolsuper)
                or t.typowner in (
                    select b.datdba from pg_catalog.pg_database as b where b.datname = pg_catalog.current_database()
                )
            )
        )
"""


def read_types(connection: Connection) -> TargetTypes:
    """Return which types the target can hold."""
    with errors_of("target", "reading the types"), connection.cursor() as cursor:
        cursor.execute(LIST_TYPES, (FIRST_USER_OID,))
        names = {row[0] for row in cursor}
        if not _reads_xml(cursor):
            names -= {"xml", "xml[]"}
    return TargetTypes(names=frozenset(names), major=connection.server_version // 10_000)


def _reads_xml(cursor: Cursor) -> bool:
    """Return whether the server can read xml values: without libxml, it has the type but reads no value."""
    try:
        cursor.execute("select '<a/>'::xml")
    except psycopg2.errors.FeatureNotSupported:
        return False
    return True
