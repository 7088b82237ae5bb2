"""The statements that fix on the source what `discover` finds there.

A remedy is a pair: what is wrong, and one statement. Begin at `list_statements`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from etl.model import WatermarkKind
from etl.postgres.sql import quote_name

Remedy = tuple[str, str]
NULL_FAULT = "rows without a value are read every run"
TRIGGER_FAULT = "no trigger is sure to set it, so an update that does not set it is found only by a scan of the table"


def list_statements(remedies: Iterable[Sequence[Remedy]]) -> list[str]:
    """Return the statements of several tables as one script: each once, before those that need it."""
    return list(dict.fromkeys(statement for own in remedies for _, statement in own))


def grant_access(schema: str, label: str, *, is_in_reach: bool, is_readable: bool) -> Iterator[Remedy]:
    """Yield the grants that the role of the run lacks."""
    if not is_in_reach:
        yield "no privilege", f"grant usage on schema {quote_name(schema)} to replicator"
    if not is_readable:
        yield "no privilege", f"grant select on {label} to replicator"


def add_key(label: str) -> Remedy:
    """Return the statement that gives a table a primary key, whose columns are to be named."""
    return "no key", f"alter table {label} add primary key (...)"


def index_column(label: str, column: str, *, is_partitioned: bool) -> Remedy:
    """Return the statement that gives a watermark column an index, without stopping writers where that is possible."""
    concurrently = "" if is_partitioned else "concurrently "
    return "each run scans the whole table", f"create index {concurrently}on {label} ({quote_name(column)})"


def forbid_null(label: str, column: str, kind: WatermarkKind, zone: str, *, has_nulls: bool) -> Iterator[Remedy]:
    """Yield the statements that declare a watermark column NOT NULL; rows without a value get the current time."""
    quoted = quote_name(column)
    if has_nulls and kind is not WatermarkKind.INTEGER:
        yield NULL_FAULT, f"update {label} set {quoted} = {_moment(kind, zone)} where {quoted} is null"
    yield NULL_FAULT, f"alter table {label} alter column {quoted} set not null"


def stamp_column(schema: str, label: str, column: str, kind: WatermarkKind, zone: str) -> Iterator[Remedy]:
    """Yield the statements that have a trigger set a column; tables whose columns are alike share the function."""
    quoted = quote_name(column)
    suffix = {WatermarkKind.TIMESTAMP: "_local", WatermarkKind.DATE: "_date"}.get(kind, "")
    function = quote_name(schema, f"touch_{column}{suffix}")
    body = _quote_literal(f"begin new.{quoted} := {_moment(kind, zone)}; return new; end")
    yield TRIGGER_FAULT, f"create function {function}() returns trigger language plpgsql as {body}"
    yield (
        TRIGGER_FAULT,
        f"create trigger {quote_name('touch_' + column)} before insert or update on {label} "
        f"for each row execute function {function}()",
    )


def _moment(kind: WatermarkKind, zone: str) -> str:
    """Return the expression of the current time for a column, whatever zone a session has set."""
    if kind is WatermarkKind.TIMESTAMPTZ:
        return "now()"
    local = f"now() at time zone {_quote_literal(zone)}"
    return local if kind is WatermarkKind.TIMESTAMP else f"({local})::date"


def _quote_literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))
