"""Lists the open transactions of the source: for the fence, and to show which ones hold a watermark back.

Begin at `list_activity`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from etl.model import Activity, Progress

# A virtual transaction whose session has just ended still counts as open, because nothing more is known of it. Sessions
# of other databases cannot write here; autovacuum workers have no user.
LIST_TRANSACTIONS = """
    select l.virtualxid
    from pg_catalog.pg_locks as l
    left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'virtualxid'
        and l.pid <> pg_catalog.pg_backend_pid()
        and (a.pid is null or (a.usesysid is not null and a.datname = pg_catalog.current_database()))
"""
# A walsender is active for as long as it streams, without a transaction: only its xact_start counts.
LIST_STARTS = """
    select
        exists (select from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database()),
        least(
            min(a.xact_start),
            min(a.query_start) filter (where a.state = 'active' and a.backend_type is distinct from 'walsender')
        ),
        pg_catalog.pg_postmaster_start_time()
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid()
        and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
"""
NAME_HOLDERS = """
    select a.pid, a.usename::text, a.application_name, a.state,
        extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8 as age_seconds
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid() and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
        and (
            a.xact_start <= %(as_of)s
            or exists (
                select from pg_catalog.pg_locks as l
                where l.pid = a.pid and l.locktype = 'virtualxid' and l.virtualxid = any (%(transactions)s)
            )
        )
    union all
    select null, p.owner::text, p.gid, 'prepared',
        extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
    from pg_catalog.pg_prepared_xacts as p
    where p.database = pg_catalog.current_database()
    order by age_seconds desc nulls last
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A transaction that holds a watermark back; without pg_read_all_stats, some values are unknown."""

    pid: int | None  # None: a prepared transaction
    user: str | None
    application: str | None  # for a prepared transaction, its global id
    state: str | None
    age_seconds: float | None  # for a prepared transaction, since it was prepared


def list_activity(cursor: Cursor, *, is_standby: bool) -> Activity:
    """List the open transactions: virtual ones first, so that one that is prepared meanwhile is in one of the lists.

    A standby cannot list the transactions of its primary: there, the declared lookback must cover them.
    """
    transactions = frozenset() if is_standby else list_transactions(cursor)
    has_prepared, oldest_start, server_started_at = list_starts(cursor)
    return Activity(
        transactions=transactions,
        has_prepared=has_prepared and not is_standby,
        oldest_start=None if is_standby else oldest_start,
        server_started_at=server_started_at,
    )


def list_transactions(cursor: Cursor) -> frozenset[str]:
    """Return the virtual ids of the open transactions that may write here."""
    cursor.execute(LIST_TRANSACTIONS)
    return frozenset(row[0] for row in cursor)


def list_starts(cursor: Cursor) -> tuple[bool, dt.datetime | None, dt.datetime]:
    """Return whether a transaction is prepared, the oldest start that is known, and when the server started."""
    cursor.execute(LIST_STARTS)
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def name_holders(cursor: Cursor, progress: Progress) -> list[Holder]:
    """Return the transactions that keep the points of a table from settling."""
    if not progress.points:
        return []
    held = sorted(set().union(*(point.transactions for point in progress.points)))
    cursor.execute(NAME_HOLDERS, {"transactions": held, "as_of": progress.points[0].as_of})
    return [
        Holder(pid=pid, user=user, application=application, state=state, age_seconds=age)
        for pid, user, application, state, age in cursor
    ]
