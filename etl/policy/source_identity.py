"""Decides whether a raw table may go on with the source as it is now. Pure: `etl.source.identity` reads what it is.

Another cluster, database or schema holds other rows. A later timeline hands out transaction ids and values of sequences
again, so watermarks and counters mean nothing there. An older source lacks rows that nobody deleted.
Begin at `judge_source`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from etl.model import Progress, Snapshot, SourceIdentity, Table

SourceChangeKind = Literal["source_compared", "source_adopted"]
AT_FORMER_SOURCE = "point SOURCE_DATABASE_URL, and schema in tables.yml, at the former source"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What to do with a raw table at a snapshot of the source, and why."""

    action: Literal["continue", "compare", "refuse"]  # compare: all columns of all rows, whatever the watermark is
    finding: str = ""
    next_step: str = ""  # of a refusal
    is_older: bool = False  # the source is an earlier state of itself, which cannot be seen once it has gone on


def judge_source(table: Table, stored: Progress, snapshot: Snapshot) -> Judgement:
    """Compare the source that a raw table was loaded from with the source at this snapshot.

    A stored refusal stays: after a while, a source that was older passes the last transaction id that a run saw, but it
    still lacks the rows that it had lost.
    """
    if is_other(stored.source, snapshot.source):
        return _refuse_other(table, stored.source, snapshot.source)
    settle = (
        f"reload the table with `etl reset {table.argument}`, or compare it with "
        f"`etl verify --adopt-source {table.argument}`, which also repairs what differs if you add --repair"
    )
    older = _find_older(stored, snapshot)
    if older:
        wait = "if it is a standby that lags, wait until it has caught up; after a restore from a backup"
        return Judgement(action="refuse", finding=older, next_step=f"{wait}, {settle}", is_older=True)
    before, now = stored.source.timeline, snapshot.source.timeline
    if before is not None and now is not None and before != now:
        return Judgement(action="compare", finding=f"timeline {before} of the source has become timeline {now}")
    if stored.refusal:
        finding = f"an earlier command found a fault that is not settled: {stored.refusal}"
        return Judgement(action="refuse", finding=finding, next_step=settle)
    return Judgement(action="continue")


def is_other(one: SourceIdentity, other: SourceIdentity) -> bool:
    """Return whether two sources are different databases or schemas; what is not known counts as equal."""
    return any(
        None not in pair and pair[0] != pair[1]
        for pair in (
            (one.system_identifier, other.system_identifier),
            (one.database_oid, other.database_oid),
            (one.schema, other.schema),
        )
    )


def is_continued(before: SourceIdentity, now: SourceIdentity) -> bool:
    """Return whether a source is the same and on the same timeline, so that its transaction ids mean the same."""
    return not is_other(before, now) and (None in (before.timeline, now.timeline) or before.timeline == now.timeline)


def describe_source(source: SourceIdentity) -> str:
    """Describe a source in words: only what is known of it."""
    parts = (
        source.database_name is not None and f'database "{source.database_name}" (oid {source.database_oid})',
        source.schema is not None and f'schema "{source.schema}"',
        source.system_identifier is not None and f"the cluster with system identifier {source.system_identifier}",
    )
    return ", ".join(part for part in parts if part)


def describe_other(table_name: str, before: SourceIdentity, now: SourceIdentity) -> str:
    """Describe that a raw table comes from another source than the one that is read now."""
    return f"raw.{table_name} holds rows of {describe_source(before)}, and the source is now {describe_source(now)}"


def _refuse_other(table: Table, before: SourceIdentity, now: SourceIdentity) -> Judgement:
    return Judgement(
        action="refuse",
        finding=describe_other(table.name, before, now),
        next_step=(
            f"{AT_FORMER_SOURCE}; or reload the table with "
            f"`etl reset {table.argument}`; or, if both hold the same rows, as after pg_upgrade, let "
            f"`etl verify --adopt-source {table.argument}` compare them and accept the new source"
        ),
    )


def _find_older(stored: Progress, snapshot: Snapshot) -> str:
    """Return how the source shows that it is older than at the last run; empty if it is not."""
    before, now = stored.source.timeline, snapshot.source.timeline
    has_moved_on = None not in (before, now) and before != now
    if before is not None and now is not None and now < before:
        evidence = f"its timeline was {before}, now {now}"
    elif not has_moved_on and stored.next_xid is not None and int(snapshot.next_xid) < int(stored.next_xid):
        evidence = f"its next transaction id was {stored.next_xid}, now {snapshot.next_xid}"
    else:
        return ""
    return f"the source is older than at the last run ({evidence})"
