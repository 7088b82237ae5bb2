"""Stops Airflow from retrying errors that a retry cannot fix. Begin at `final_errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from etl.errors import ConfigurationError, TableError
from etl.transform.lock import ClosedBuildError
from etl.transform.project import BrokenRuleError


class DifferenceError(TableError):
    """Source and raw differ."""


class UnfinishedTablesError(TableError):
    """A run has ended, and some of its tables were not replicated."""


@contextmanager
def final_errors() -> Iterator[None]:
    """Fail the task without a retry on errors that the same rows and settings would cause again."""
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
