"""Reads which source a session is connected to: its cluster, database, schema and timeline.

Every role may call these functions, unless somebody revoked that. Begin at `read_identity`.
"""

from __future__ import annotations

import psycopg2.errors
from psycopg2.extensions import cursor as Cursor

from etl.model import SourceIdentity
from etl.postgres.transactions import single

READ_DATABASE = """
    select s.system_identifier::text, d.oid, d.datname
    from pg_catalog.pg_control_system() as s
    cross join pg_catalog.pg_database as d
    where d.datname = pg_catalog.current_database()
"""
# The name of a WAL file begins with the timeline, as eight hexadecimal digits.
TIMELINE_OF_WAL = """
    select (
        'x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
    )::pg_catalog.bit(32)::bigint
"""
# Of the last checkpoint, so it can still be the old one after a promotion. Without pg_read_all_stats, received_tli is
# NULL.
TIMELINE_OF_CHECKPOINT = """
    select greatest(c.timeline_id, r.received_tli)
    from pg_catalog.pg_control_checkpoint() as c
    left join pg_catalog.pg_stat_wal_receiver as r on true
"""
NOT_SHOWN = (
    psycopg2.errors.InsufficientPrivilege,
    psycopg2.errors.ObjectNotInPrerequisiteState,  # what writes WAL is called on a standby
    psycopg2.errors.FeatureNotSupported,
    psycopg2.errors.UndefinedFunction,  # a server that is only compatible with PostgreSQL
)


def read_identity(cursor: Cursor, schema: str, *, is_standby: bool) -> SourceIdentity:
    """Return the identity of the source; the cursor is outside any transaction.

    Read it before the snapshot: if the server is promoted in between, the next run finds the new timeline.
    """
    cursor.execute(READ_DATABASE)
    row = cursor.fetchone()
    assert row is not None
    return SourceIdentity(
        system_identifier=row[0],
        database_oid=row[1],
        database_name=row[2],
        schema=schema,
        timeline=_read_timeline(cursor, is_standby=is_standby),
    )


def _read_timeline(cursor: Cursor, *, is_standby: bool) -> int | None:
    """Return the timeline; None if the source does not show it to this role."""
    for statement in (TIMELINE_OF_CHECKPOINT,) if is_standby else (TIMELINE_OF_WAL, TIMELINE_OF_CHECKPOINT):
        try:
            cursor.execute(statement)
        except NOT_SHOWN:
            continue
        return int(single(cursor))
    return None
