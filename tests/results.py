"""What a run has done, in a form that says what was expected and what was found when a comparison fails."""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from etl.results import RunResult


def statuses(result: RunResult) -> dict[str, str]:
    """Return how each table of a run has ended, by its name."""
    return {table.table_name: table.status for table in result.tables}


def pick(found: Any, *names: str) -> tuple[Any, ...]:
    """Return these values of a result or a row as a tuple that knows their names."""
    values = [found[name] if isinstance(found, Mapping) else getattr(found, name) for name in names]
    kind = "Row" if isinstance(found, Mapping) else type(found).__name__
    return namedtuple(kind, names)(*values)
