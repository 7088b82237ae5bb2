"""Tells Airflow which errors a retry cannot mend. Begin at `final_errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from etl.errors import ConfigurationError, TableError
from etl.transform.lock import ClosedBuildError
from etl.transform.project import BrokenRuleError


class DifferenceError(TableError):
    """Source and raw differ."""


class UnfinishedTablesError(TableError):
    """Tables of a run that has ended were not replicated."""


@contextmanager
def final_errors() -> Iterator[None]:
    """Make errors that the same rows and settings bring again fail a task without a retry."""
    try:
        yield
    except (
        ConfigurationError,
        BrokenRuleError,
        ClosedBuildError,
        DifferenceError,
        UnfinishedTablesError,
    ) as error:
        from airflow.sdk.exceptions import AirflowFailException  # noqa: PLC0415 in a task only

        raise AirflowFailException(str(error)) from error
