"""Shows progress to a person or a log collector: bars on a terminal, plain lines elsewhere, or JSON lines.

Progress goes to standard error; `print_aligned` prints results to standard output.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from etl.results import Event, TableResult
from etl.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


LogFormat = Literal["text", "json"]


class PlainProgress(AbstractContextManager["PlainProgress"]):
    """Prints a line for each event of interest, and only once that a table continues."""

    def __init__(self) -> None:
        self._continued: set[str | None] = set()

    def __call__(self, event: Event) -> None:
        line = describe(event) if is_news(event, self._continued) else ""
        if line:
            sys.stderr.write(f"{line}\n")  # one write per line, because several threads report
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        return None


class JsonProgress(AbstractContextManager["JsonProgress"]):
    """Prints one JSON object for each event."""

    def __call__(self, event: Event) -> None:
        sys.stderr.write(f"{json.dumps(_as_record(event))}\n")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        return None


class BarProgress(AbstractContextManager["BarProgress"]):
    """Shows a bar for each table in progress; finished tables are listed above the bars."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 costs 0.1 s, needed only on a terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._progress: Progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            TextColumn("{task.completed:>12,} rows"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._continued: set[str | None] = set()

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        name = event.table_name
        if name and event.kind == "table_started":
            self._tasks[name] = self._progress.add_task(printable(name), total=event.estimated_rows)
        elif name and event.kind == "batch_committed" and event.counts:
            self._progress.advance(self._tasks[name], event.counts.read)
        else:
            if name and name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
            if is_news(event, self._continued):
                self._progress.console.print(describe(event), markup=False, highlight=False)


ProgressDisplay = PlainProgress | JsonProgress | BarProgress


def choose_progress(log_format: LogFormat) -> ProgressDisplay:
    """Return the display that suits standard error; `log_format` is "text" or "json"."""
    if log_format == "json":
        return JsonProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def is_news(event: Event, continued: set[str | None]) -> bool:
    """Return whether to show an event, and note it in `continued`: that a table continues is shown only once.

    With short snapshots, a table continues many times. Tables of which nothing was read are only counted at the end.
    """
    if event.kind == "table_finished" and event.result:
        return not event.result.is_idle
    is_new = event.kind != "table_continued" or event.table_name not in continued
    if event.kind == "table_continued":
        continued.add(event.table_name)
    return is_new


def describe(event: Event) -> str:
    """Return the line that shows an event; it is empty for events that only move a bar."""
    return printable(_describe(event))


def _describe(event: Event) -> str:
    if event.kind == "notice":
        return f"note: {event.message}"
    if event.kind == "table_retried":
        return f"{event.table_name}: will be retried: {event.message}"
    if event.kind == "table_continued":
        return (
            f"{event.table_name}: continues at newer snapshots, because none is held longer than max_snapshot_seconds"
        )
    if event.kind == "table_compared":
        return f"{event.table_name}: {event.message}"
    if event.kind == "table_finished" and event.result:
        return describe_result(event.result)
    return ""


def describe_result(result: TableResult) -> str:
    if result.status != "succeeded":
        return f"{result.table_name}: failed: {result.error}"
    rejected = f", {result.rows_rejected:,} rejected (see etl.rejected_rows)" if result.rows_rejected else ""
    return (
        f"{result.table_name}: {result.rows_read:,} rows read, {result.rows_inserted:,} inserted, "
        f"{result.rows_updated:,} updated, {result.rows_unchanged:,} unchanged, "
        f"{result.rows_deleted:,} deleted{rejected} in {result.seconds:.1f} s"
    )


def _as_record(event: Event) -> dict[str, Any]:
    record: dict[str, Any] = {"at": dt.datetime.now(dt.UTC).isoformat(), "event": event.kind}
    if event.table_name:
        record["table"] = event.table_name
    if event.message:
        record["message"] = event.message
    if event.counts:
        record |= {"rows_read": event.counts.read, "bytes_read": event.counts.bytes}
    if event.result:
        record |= result_record(event.result)
    return record


def result_record(result: TableResult) -> dict[str, Any]:
    """Return a table's result as JSON-ready values."""
    return {
        "table": result.table_name,
        "status": result.status,
        "rows_read": result.rows_read,
        "rows_inserted": result.rows_inserted,
        "rows_updated": result.rows_updated,
        "rows_unchanged": result.rows_unchanged,
        "rows_deleted": result.rows_deleted,
        "rows_rejected": result.rows_rejected,
        "watermark": result.watermark,
        "seconds": round(result.seconds, 3),
        "retries": result.retries,
        "error": result.error,
    }


def print_aligned(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers_from: int | None = None) -> None:
    """Print a table; columns from `numbers_from` on are numbers, aligned right."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if numbers_from is None or place < numbers_from else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
