"""Stores the last net scan of each slice of a table, and what it found.

Functions that take a cursor join the caller's transaction; those that take a connection commit on their own.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.model import Mark
from etl.policy.net import FORGOTTEN, Slice
from etl.postgres.error_translation import errors_of

LIST_SLICES = """
    select table_name, first_block, end_block, scan_xid, scan_signature, scanned_at
    from etl.net_scans
    order by table_name, first_block
"""
SAVE_SCAN = """
    insert into etl.net_scans as n (
        table_name, first_block, end_block, scan_xid, scan_signature, scanned_at, run_id, rows_found, found_at
    )
    values (
        %(table_name)s, %(start)s, %(end)s, %(xid)s, %(signature)s, %(scanned_at)s, %(run_id)s, %(found)s,
        case when %(found)s > 0 then %(scanned_at)s::timestamptz end
    )
    on conflict (table_name, first_block) do update set
        end_block = excluded.end_block, scan_xid = excluded.scan_xid, scan_signature = excluded.scan_signature,
        scanned_at = excluded.scanned_at, run_id = excluded.run_id, rows_found = n.rows_found + excluded.rows_found,
        found_at = coalesce(excluded.found_at, n.found_at)
"""


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """The net scans of a table as a whole."""

    oldest_at: dt.datetime  # of the slice that was scanned longest ago, by the source's clock
    rows_found: int  # that the watermark column had not shown


def read_summaries(connection: Connection) -> dict[str, ScanSummary]:
    """Return the summary of each table that has a net."""
    with errors_of("target", "reading the net scans"), connection.cursor() as cursor:
        cursor.execute("select table_name, min(scanned_at), sum(rows_found)::bigint from etl.net_scans group by 1")
        return {name: ScanSummary(oldest_at=oldest, rows_found=found) for name, oldest, found in cursor}


def read_slices(connection: Connection) -> dict[str, tuple[Slice, ...]]:
    """Return the slices of each table that has been scanned, in the order of their blocks."""
    found: dict[str, tuple[Slice, ...]] = {}
    with errors_of("target", "reading the net scans"), connection.cursor() as cursor:
        cursor.execute(LIST_SLICES)
        for name, start, end, xid, signature, scanned_at in cursor:
            mark = Mark(oldest_xid=xid, signature=signature)
            one = Slice(start=start, end=end, mark=mark, scanned_at=scanned_at)
            found[name] = (*found.get(name, ()), one)
    return found


def save_scan(cursor: Cursor, run_id: int, table_name: str, scanned: Slice, found: int) -> None:
    """Store the scan of a slice that `etl.net_scans` has, or of a new one."""
    cursor.execute(
        SAVE_SCAN,
        {
            "table_name": table_name,
            "start": scanned.start,
            "end": scanned.end,
            "xid": scanned.mark.oldest_xid,
            "signature": scanned.mark.signature,
            "scanned_at": scanned.scanned_at,
            "run_id": run_id,
            "found": found,
        },
    )


def renew_scans(cursor: Cursor, run_id: int, table_name: str, whole: Slice) -> None:
    """Store that all of a table was read at one snapshot; its slices stay as they are."""
    cursor.execute(
        "update etl.net_scans set scan_xid = %s, scan_signature = %s, scanned_at = %s, run_id = %s"
        " where table_name = %s",
        (whole.mark.oldest_xid, whole.mark.signature, whole.scanned_at, run_id, table_name),
    )
    if not cursor.rowcount:
        save_scan(cursor, run_id, table_name, whole, 0)


def forget_marks(cursor: Cursor, table_name: str) -> None:
    """Forget which row versions the scans of a table have seen, but not what they found."""
    cursor.execute("update etl.net_scans set scan_signature = %s where table_name = %s", (FORGOTTEN, table_name))
