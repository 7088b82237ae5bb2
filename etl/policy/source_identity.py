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


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What to do with a raw table at a snapshot of the source, and why."""

    action: Literal["continue", "compare", "refuse"]  # compare: all columns of all rows, before anything else counts
    finding: str = ""
    next_step: str = ""  # of a refusal
    is_lasting: bool = False  # the refusal stays when its cause can no longer be seen


def judge_source(table: Table, stored: Progress, snapshot: Snapshot) -> Judgement:
    """Compare the source that a raw table was loaded from with the source at this snapshot.

    A stored refusal stays: a source that was older passes the last run's transaction id after a while, without the rows
    that it lacked. A standby may only have lagged, so once it has caught up, its rows are compared.
    """
    if is_other(stored.source, snapshot.source):
        return Judgement(
            action="refuse",
            finding=(
                f"raw.{table.name} holds rows of {describe_source(stored.source)}, and the source is now "
                f"{describe_source(snapshot.source)}"
            ),
            next_step=(
                "point SOURCE_DATABASE_URL, and schema in tables.yml, at the former source; or reload the table with "
                f"`etl reset {table.argument}`; or, if both hold the same rows, as after pg_upgrade, let "
                f"`etl verify --adopt-source {table.argument}` compare them and accept the new source"
            ),
        )
    before, now = stored.source.timeline, snapshot.source.timeline
    settle = (
        f"reload the table with `etl reset {table.argument}`, or compare it with "
        f"`etl verify --adopt-source {table.argument}`, which also repairs what differs if you add --repair"
    )
    older = _find_older(stored, snapshot)
    if older:
        wait = "if it is a standby that lags, wait until it has caught up; after a restore from a backup"
        return Judgement(action="refuse", finding=older, next_step=f"{wait}, {settle}", is_lasting=True)
    if before is not None and now is not None and before != now:
        return Judgement(action="compare", finding=f"timeline {before} of the source has become timeline {now}")
    if stored.refusal and snapshot.is_standby:
        return Judgement(action="compare", finding="the standby was behind and has caught up")
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
