"""What a comparison found of one table, and how it is reported. Begin at `Verdict`."""

from __future__ import annotations

from dataclasses import dataclass

from etl.compare.differences import DifferenceKind


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row that differs."""

    kind: DifferenceKind
    key: dict[str, str]  # column to value as text
    columns: tuple[str, ...] = ()  # of a changed row: the names of those that differ


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of one table."""

    table_name: str
    source_rows: int = 0
    raw_rows: int = 0  # without tombstones
    missing: int = 0  # in raw
    extra: int = 0  # in raw, where deletes are followed
    changed: int = 0
    pending: int = 0  # missing or changed, and read by the next run
    examples: tuple[Example, ...] = ()
    repaired: int = 0  # rows that were mended before this was found
    error: str | None = None  # why the table could not be compared

    @property
    def is_equal(self) -> bool:
        return self.error is None and not (self.missing or self.extra or self.changed)


def describe(verdict: Verdict) -> str:
    """Return what was found of a table in one line."""
    if verdict.error:
        return verdict.error
    repaired = f", after {verdict.repaired:,} rows were repaired" if verdict.repaired else ""
    counts = {
        "missing in raw": verdict.missing,
        "extra in raw": verdict.extra,
        "changed": verdict.changed,
        "pending": verdict.pending,
    }
    found = ", ".join(f"{rows:,} {kind}" for kind, rows in counts.items() if rows)
    if verdict.is_equal:
        return f"equal{repaired}" + (f"; {found}, which the next run reads" if found else "")
    return f"different{repaired}: {found}"
