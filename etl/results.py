"""What a run tells while it works, and how it and its tables ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from etl.model import Counts

TableStatus = Literal["succeeded", "failed"]
EventKind = Literal[
    "notice",
    "table_started",
    "batch_committed",
    "table_continued",
    "table_retried",
    "table_finished",
    "table_compared",
]


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """How one table of a run ended."""

    table_name: str
    status: TableStatus
    counts: Counts = field(default_factory=Counts)
    watermark: str | None = None
    seconds: float = 0.0
    retries: int = 0
    error: str | None = None

    @property
    def rows_read(self) -> int:
        return self.counts.read

    @property
    def rows_inserted(self) -> int:
        return self.counts.inserted

    @property
    def rows_updated(self) -> int:
        return self.counts.updated

    @property
    def rows_unchanged(self) -> int:
        return self.counts.unchanged

    @property
    def rows_deleted(self) -> int:
        return self.counts.deleted

    @property
    def rows_rejected(self) -> int:
        return self.counts.rejected

    @property
    def is_idle(self) -> bool:
        """Whether the run had nothing to do for the table."""
        found = (self.rows_read, self.rows_inserted, self.rows_updated, self.rows_deleted, self.rows_rejected)
        return self.status == "succeeded" and not any(found)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    run_id: int
    seconds: float
    tables: tuple[TableResult, ...]

    @property
    def has_failures(self) -> bool:
        return any(table.status != "succeeded" for table in self.tables)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a person watching the run wants to see."""

    kind: EventKind
    table_name: str | None = None
    message: str = ""
    estimated_rows: int | None = None
    counts: Counts | None = None
    result: TableResult | None = None


Observer = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Ignore an event; this is the default observer."""
