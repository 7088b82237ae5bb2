"""Compares source and target by content: the number of rows, and a checksum over the text of all columns.

Both are read as they are now, the source at one snapshot; what changed since the last run shows as a difference.
Nothing is written. Begin at `verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl import postgres, state, target
from etl.config import Settings
from etl.errors import EtlError, TableError, UnavailableError
from etl.model import Table
from etl.source import Source


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found of one table."""

    table_name: str
    source_rows: int
    raw_rows: int
    is_equal: bool
    error: str | None = None


def verify(settings: Settings, table_names: Sequence[str] = ()) -> tuple[Comparison, ...]:
    """Compare the configured tables, or those named; raises UnavailableError when nothing can be compared."""
    control = postgres.connect_target(settings)
    try:
        if not state.has_ledger(control):
            raise UnavailableError(
                f"the target {settings.target_url.address} holds no replicated tables: run `etl run` first"
            )
        types = target.read_types(control)
    finally:
        control.close()
    with Source(settings) as source:
        found = source.read_catalog(types, table_names)
        source.export_snapshot({table.name for table in found.tables})
        compared = [_compare(settings, source, table) for table in found.tables]
    refused = [_failure(name, reason) for name, reason in found.refusals.items()]
    return tuple(sorted([*compared, *refused], key=lambda comparison: comparison.table_name))


def _compare(settings: Settings, source: Source, table: Table) -> Comparison:
    try:
        with target.open_writer(settings, table, run_id=0) as writer, source.open_reader(table) as reader:
            if not writer.fit():
                raise TableError(f"expected raw.{table.name} on the target, found none: run `etl run {table.name}`")
            in_source, in_raw = reader.checksum(), writer.checksum()
    except EtlError as error:
        return _failure(table.name, str(error))
    return Comparison(table_name=table.name, source_rows=in_source[0], raw_rows=in_raw[0], is_equal=in_source == in_raw)


def _failure(name: str, reason: str) -> Comparison:
    return Comparison(table_name=name, source_rows=0, raw_rows=0, is_equal=False, error=reason)
