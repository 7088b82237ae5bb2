"""Vacuums and analyzes the tables that a role owns, so that space is reused and plans use current statistics."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

from psycopg2 import sql

from etl.config import Settings
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of

OWN_TABLES = """
    select n.nspname, c.relname
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and c.relowner = current_user::regrole and c.relpersistence = 'p'
        and n.nspname in ('raw', 'etl', 'intermediate', 'snapshots', 'marts')
    order by 1, 2
"""


@dataclass(frozen=True, kw_only=True)
class Vacuumed:
    """The vacuum of one table."""

    table_name: str  # with its schema
    seconds: float
    is_locked: bool  # by another session, so it was skipped


def vacuum_own_tables(settings: Settings) -> tuple[Vacuumed, ...]:
    """Vacuum and analyze each table that the role of the URL owns on the target; locked tables are skipped.

    Each table commits on its own. Raises UnavailableError, or TargetError.
    """
    done = []
    with closing(sessions.connect_target(settings)) as connection, connection.cursor() as cursor:
        with errors_of("target", "listing tables"):
            cursor.execute(OWN_TABLES)
            found = cursor.fetchall()
        for schema, name in found:
            started = time.monotonic()
            connection.notices.clear()
            statement = sql.SQL("vacuum (analyze, skip_locked) {}").format(sql.Identifier(schema, name))
            with errors_of("target", f"vacuum of {schema}.{name}"):
                cursor.execute(statement)
            seconds = time.monotonic() - started
            is_locked = any("lock not available" in notice for notice in connection.notices)
            done.append(Vacuumed(table_name=f"{schema}.{name}", seconds=seconds, is_locked=is_locked))
    return tuple(done)
