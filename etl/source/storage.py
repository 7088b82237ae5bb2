"""Reads what the source shows about how a table is stored: its files, their size, its counters, its contents."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import cursor as Cursor

from etl.model import Table
from etl.policy.deletes import Counters
from etl.postgres.catalog_sql import LEAVES
from etl.postgres.sql import read_sql

FILENODES = f"""
    select coalesce(string_agg(l.oid || ':' || pg_catalog.pg_relation_filenode(l.oid), ',' order by l.oid), '')
    from ({LEAVES}) as l
"""
LIST_CONTENTS = read_sql(__package__, "list_contents")
READ_COUNTERS = f"""
    select t.oid, sum(pg_catalog.pg_stat_get_tuples_inserted(l.oid)), sum(pg_catalog.pg_stat_get_tuples_updated(l.oid)),
        sum(pg_catalog.pg_stat_get_tuples_deleted(l.oid)),
        (
            select pg_catalog.concat_ws(' ', d.stats_reset, w.stats_reset)
            from pg_catalog.pg_stat_database as d, pg_catalog.pg_stat_bgwriter as w
            where d.datname = pg_catalog.current_database()
        ),
        pg_catalog.pg_postmaster_start_time(), pg_catalog.clock_timestamp(),
        pg_catalog.current_setting('track_counts') = 'on', sum(greatest(l.relpages, 0))
    from unnest(%s::oid[]) as t (oid)
    cross join lateral ({LEAVES.format(oid="t.oid")}) as l
    group by t.oid
"""


def read_filenodes(cursor: Cursor, oid: int) -> str:
    """Return the identity of a table's files, which TRUNCATE and rewriting DDL change."""
    cursor.execute(FILENODES.format(oid="%(oid)s::oid"), {"oid": oid})
    row = cursor.fetchone()
    return str(row[0]) if row else ""


def read_block_counts(cursor: Cursor, oid: int) -> list[int]:
    """Return the number of blocks of each of a table's partitions, or of the table itself."""
    cursor.execute(
        "select pg_catalog.pg_relation_size(l.oid) / pg_catalog.current_setting('block_size')::bigint "
        f"from ({LEAVES.format(oid='%(oid)s::oid')}) as l",
        {"oid": oid},
    )
    return [int(row[0] or 0) for row in cursor]


def read_counters(cursor: Cursor, tables: Sequence[Table]) -> dict[str, Counters]:
    """Return the counters of each table, by its name, summed over its partitions."""
    cursor.execute(READ_COUNTERS, ([table.oid for table in tables],))
    found = {row[0]: row[1:] for row in cursor}
    return {
        table.name: Counters(
            inserted=int(inserted),
            updated=int(updated),
            deleted=int(deleted),
            filenodes=table.files,
            stats_reset=stats_reset,
            server_started_at=server_started_at,
            listed_at=listed_at,
            are_counted=are_counted,
            estimated_blocks=int(blocks),
        )
        for table in tables
        if table.oid in found
        for inserted, updated, deleted, stats_reset, server_started_at, listed_at, are_counted, blocks in [
            found[table.oid]
        ]
    }


def read_contents(cursor: Cursor, oids: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return, for each of these tables, a hash for each column of what gives its stored values."""
    cursor.execute(LIST_CONTENTS, {"oids": list(oids)})
    contents: dict[int, dict[str, str]] = {}
    for oid, name, content in cursor:
        contents.setdefault(oid, {})[name] = content
    return contents
