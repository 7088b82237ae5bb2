"""Extract and load with one mapped task per table, all in one run: whether that is chosen, and its three steps.

A table's task may be retried or cleared at any time, even after the run has ended. Begin at `begin_run`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from etl.commands import shared_run
from etl.config import load_settings
from etl.errors import ConfigurationError, TableError
from etl.orchestration.failures import UnfinishedTablesError, final_errors
from etl.orchestration.steps import describe_tables, log_event
from etl.text import printable

log = logging.getLogger("tidemark")

CHOICE = "mapped_tables"  # an Airflow variable, and a param of the DAG that overrides it
YES, NO = "true", "false"


@final_errors()
def skip_unless(is_mapped: bool, params: Mapping[str, Any]) -> None:
    """Skip the current task unless mapped tables are chosen; with `is_mapped` false, unless they are not chosen."""
    if is_chosen(params) != is_mapped:
        from airflow.sdk.exceptions import AirflowSkipException  # noqa: PLC0415 in a task only

        raise AirflowSkipException(f"{CHOICE} is {NO if is_mapped else YES}")


def is_chosen(params: Mapping[str, Any]) -> bool:
    """Return whether each table gets its own task: the param decides, else the variable; the default is no."""
    from airflow.sdk import Variable  # noqa: PLC0415 read in a task only, never when a DAG file is parsed

    given = params.get(CHOICE)
    if given is not None:
        return bool(given)
    text = str(Variable.get(CHOICE, default=None) or NO)
    if text.lower() not in (YES, NO):
        raise ConfigurationError(f"the Airflow variable {CHOICE} is {text!r}: expected {YES} or {NO}")
    return text.lower() == YES


def begin_run(environment: Mapping[str, str], shared_by: str) -> tuple[int, list[str]]:
    """Begin a run; return its id and the names of the tables, each before those that it references."""
    with final_errors():
        run = shared_run.begin(load_settings(environment), shared_by=shared_by, observe=log_event)
        log.info("run %s: %s tables: %s", run.run_id, len(run.table_names), printable(", ".join(run.table_names)))
        return run.run_id, list(run.table_names)


def replicate_table(environment: Mapping[str, str], run_id: int, table_name: str) -> dict[str, Any]:
    """Bring one table up to date in the run; return what was done and what holds it back. Raises TableError."""
    with final_errors():
        settings = load_settings(environment)
        result = shared_run.replicate(settings, run_id, table_name, observe=log_event)
        (record,) = describe_tables(settings, result)
        if record["error"]:
            raise TableError(f"run {result.run_id}: {table_name}: {record['error']}")
        return {"run_id": result.run_id, **record}


def end_run(environment: Mapping[str, str], run_id: int) -> dict[str, Any]:
    """End the run, and bring tables linked by foreign keys to one snapshot; fail without a retry if a table failed."""
    with final_errors():
        settings = load_settings(environment)
        ended = shared_run.end(settings, run_id, observe=log_event)
        if ended.failed_tables:
            raise UnfinishedTablesError(
                f"run {run_id} has ended, and these tables failed: {', '.join(ended.failed_tables)}; the logs of "
                "their tasks say why: fix that, then clear these tasks"
            )
        records = describe_tables(settings, ended.caught_up) if ended.caught_up else []
        failed = [f"{record['table']}: {record['error']}" for record in records if record["error"]]
        if failed:
            raise TableError(f"run {run_id} has ended, but not all of its tables agree", *failed)
        return {"run_id": run_id, "caught_up": records}
