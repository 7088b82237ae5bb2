"""Reads, while a DAG file is parsed, the Airflow variables that decide which tasks the DAG has."""

from __future__ import annotations

from airflow.sdk import Variable

from etl.errors import ConfigurationError

DBT_RUNNERS = ("plain", "cosmos")


def read_dbt_runner() -> str:
    """Return how dbt runs: `plain`, one process for all models, or `cosmos`, a task for each model.

    Raises ConfigurationError when the variable `dbt_runner` has any other value.
    """
    chosen = str(Variable.get("dbt_runner", default=DBT_RUNNERS[0]))
    if chosen not in DBT_RUNNERS:
        raise ConfigurationError(f"the variable dbt_runner is {chosen!r}: expected {' or '.join(DBT_RUNNERS)}")
    return chosen
