"""Reads, while a DAG file is parsed, what its tasks and the forms of its parameters depend on. No connection."""

from __future__ import annotations

import yaml
from airflow.sdk import Variable

from etl.errors import ConfigurationError
from etl.transform.manifest import PROJECT

DBT_RUNNERS = ("plain", "cosmos")


def read_dbt_runner() -> str:
    """Return how dbt runs: `plain`, one process for all models, or `cosmos`, a task for each model.

    Raises ConfigurationError when the variable `dbt_runner` has any other value.
    """
    chosen = str(Variable.get("dbt_runner", default=DBT_RUNNERS[0]))
    if chosen not in DBT_RUNNERS:
        raise ConfigurationError(f"the variable dbt_runner is {chosen!r}: expected {' or '.join(DBT_RUNNERS)}")
    return chosen


def list_tables() -> list[str]:
    """Return the tables of schema raw that the dbt project reads; others may be replicated too."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in PROJECT.glob("models/**/*sources.yml")]
    sources = [source for document in documents for source in document["sources"]]
    return sorted(table["name"] for source in sources if source["name"] == "raw" for table in source["tables"])
