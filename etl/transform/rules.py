"""Turns dbt's results into lines that say which rule is broken, by how many rows, and which query lists them.

Pure: it takes dbt's results as they are and does not import dbt. Begin at `describe_failures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SECONDS_PER_HOUR = 3600
# For a source without rows, dbt reports an age as if the newest row were from the year 1.
NEVER_HOURS = 24 * 366 * 1000
FAILED = ("error", "fail", "runtime error")
CHAIN_PREFIXES = ("> in ", "> called by ", "compiled code at ")  # of lines in which dbt says where it failed


def describe_failures(results: Sequence[Any]) -> list[str]:
    """Return a line for each broken rule and each failed model, and one that lists the models not built."""
    failed = [_describe(result) for result in results if result.status in FAILED]
    skipped = [
        result.node.name
        for result in results
        if result.status == "skipped" and result.node.resource_type in ("model", "snapshot")
    ]
    if failed and skipped:
        failed.append(f"not built, because they read what failed: {', '.join(sorted(skipped))}")
    return failed


def describe_warnings(results: Sequence[Any]) -> list[str]:
    """Return a line for each broken rule that only warns."""
    return [f"warning: {_describe(result)}" for result in results if result.status == "warn"]


def has_rows_to_see(results: Sequence[Any]) -> bool:
    """Return whether rows that break a rule were stored."""
    return any(_is_broken_rule(result) for result in results)


def is_broken_by_rows_alone(results: Sequence[Any]) -> bool:
    """Return whether only rules and unit tests failed, because of rows, and no statement ended in an error."""
    failed = [result for result in results if result.status in FAILED]
    return bool(failed) and all(result.status == "fail" for result in failed)


def result_records(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Return each node's result as JSON-ready values; `failures` counts the rows that break a rule."""
    return [
        {
            "name": result.node.name,
            "kind": str(result.node.resource_type),
            "status": str(result.status),
            "seconds": round(result.execution_time or 0.0, 3),
            "failures": result.failures or 0,
        }
        for result in results
    ]


def describe_freshness(result: Any) -> str:
    """Return a line with the age of one source, and the next step if it is too old."""
    if result.status == "runtime error":
        return f"{result.node.name}: {cut_reason(result.message)}; replicate with `make extract`"
    hours = result.age / SECONDS_PER_HOUR
    found = "no run has succeeded" if hours > NEVER_HOURS else f"the newest run that succeeded ended {hours:.1f} h ago"
    allowed = result.node.freshness
    if result.status == "pass":
        return f"raw is fresh: {found}, and up to {_threshold(allowed.warn_after)} are allowed"
    bound = allowed.error_after if result.status == "error" else allowed.warn_after
    prefix = "warning: " if result.status == "warn" else ""
    return (
        f"{prefix}raw is stale: expected a run within {_threshold(bound)}, found: {found}; "
        "run `make extract`; `make status` shows what holds a table back"
    )


def cut_reason(message: object) -> str:
    """Return dbt's message in one line, without the chain of macros through which it was raised."""
    lines = [line.strip() for line in str(message).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(CHAIN_PREFIXES))


def _describe(result: Any) -> str:
    node = result.node
    if not _is_broken_rule(result):
        return f"{node.name}: {cut_reason(result.message)}; see {node.original_file_path} in dbt/"
    description = f" ({node.description.strip()})" if node.description else ""
    query = f"select * from {node.schema}.{node.alias}"
    return f"rule {node.name}: {_count_rows(result)} it{description}; see them: {query}"


def _is_broken_rule(result: Any) -> bool:
    """Return whether rows break a rule; false for a rule whose query failed, and for a unit test."""
    return result.node.resource_type == "test" and result.status in ("fail", "warn") and bool(result.failures)


def _count_rows(result: Any) -> str:
    limit = result.node.config.limit
    if limit and result.failures >= limit:
        return f"{limit:,} rows or more break"
    return "1 row breaks" if result.failures == 1 else f"{result.failures:,} rows break"


def _threshold(bound: Any) -> str:
    return f"{bound.count} {bound.period}{'' if bound.count == 1 else 's'}"
