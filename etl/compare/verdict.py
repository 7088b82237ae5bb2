"""The result of comparing one table, and its description in words. Begin at `Verdict`."""

from __future__ import annotations

from dataclasses import dataclass

from etl.compare.differences import DifferenceKind


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row that differs."""

    kind: DifferenceKind
    key: dict[str, str]  # column to value as text
    columns: tuple[str, ...] = ()  # of a changed row: those that differ


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of comparing one table."""

    table_name: str
    source_rows: int = 0
    raw_rows: int = 0  # without tombstones
    missing: int = 0  # only on the source
    extra: int = 0  # only in raw; 0 where deletes are not followed
    changed: int = 0
    rejected: int = 0  # missing or changed, because the target rejects them (etl.rejected_rows)
    pending: int = 0  # missing or changed, but read by the next run
    examples: tuple[Example, ...] = ()
    repaired: int = 0  # rows repaired before this comparison
    is_adopted: bool = False  # the raw table goes on from another source, or another timeline of it
    error: str | None = None  # why the table could not be compared

    @property
    def is_equal(self) -> bool:
        return self.error is None and not (self.missing or self.extra or self.changed or self.rejected)


def describe(verdict: Verdict) -> str:
    """Return the result for a table in one line."""
    if verdict.error:
        return verdict.error
    repaired = f", after {verdict.repaired:,} rows were repaired" if verdict.repaired else ""
    counts = {
        "missing in raw": verdict.missing,
        "extra in raw": verdict.extra,
        "changed": verdict.changed,
        "rejected by the target (see etl.rejected_rows)": verdict.rejected,
    }
    pending = f"{verdict.pending:,} pending, which the next run reads" if verdict.pending else ""
    found = ", ".join(f"{rows:,} {kind}" for kind, rows in counts.items() if rows)
    if verdict.is_adopted:
        repaired += "; the source was adopted"
    outcome = f"equal{repaired}" if verdict.is_equal else f"different{repaired}: {found}"
    return f"{outcome}; {pending}" if pending else outcome
