"""Tells where every table stands: its watermark, how old it is, and which sessions hold it back."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from etl import postgres, state
from etl.config import Settings
from etl.errors import UnavailableError
from etl.source import Holder, Source

LIST_LAST_RUNS = """
    select distinct on (table_name) table_name, status, ended_at, error
    from etl.table_runs
    order by table_name, run_id desc
"""


@dataclass(frozen=True, kw_only=True)
class TableStatus:
    """Where one table stands."""

    table_name: str
    watermark_column: str | None
    watermark: str | None
    status: str  # of its last run
    ended_at: dt.datetime | None
    points_waiting: int
    holders: tuple[Holder, ...]
    error: str | None


def read_status(settings: Settings) -> tuple[TableStatus, ...]:
    """Return the status of every table that was ever run; raises UnavailableError before the first run."""
    control = postgres.connect_target(settings)
    try:
        if not state.has_ledger(control):
            raise UnavailableError(f"the target {settings.target_url.address} has seen no run: run `etl run` first")
        progress = state.read_progress(control)
        with postgres.errors_of("target", "reading the ledger"), control.cursor() as cursor:
            cursor.execute(LIST_LAST_RUNS)
            last_runs = cursor.fetchall()
    finally:
        control.close()
    with Source(settings) as source:
        holders = {name: source.name_holders(where) for name, where in progress.items() if where.points}
    return tuple(
        TableStatus(
            table_name=name,
            watermark_column=progress[name].column if name in progress else None,
            watermark=progress[name].watermark if name in progress else None,
            status=status,
            ended_at=ended_at,
            points_waiting=len(progress[name].points) if name in progress else 0,
            holders=tuple(holders.get(name, ())),
            error=error,
        )
        for name, status, ended_at, error in last_runs
    )
