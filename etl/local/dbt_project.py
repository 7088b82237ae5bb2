"""Runs dbt on the project's models, in this process: one start for models and tests costs seconds, not minutes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import psycopg2.extensions

from etl.errors import EtlError, UnavailableError
from etl.local.databases import CHECKOUT, Databases

PROJECT = CHECKOUT / "dbt"


class BuildError(EtlError):
    """A model or a test of the dbt project failed."""


def build(databases: Databases) -> None:
    """Build and test all models, a line for each model; raises BuildError with what failed."""
    counted = {"models": 0, "tests": 0}

    def show(event: Any) -> None:
        if event.info.name == "LogModelResult":
            counted["models"] += 1
            node = event.data.node_info
            # One write a line: models end in several threads.
            sys.stderr.write(f"{node.node_relation.schema}.{node.node_name}: {event.data.status.lower()}\n")
        elif event.info.name in ("LogTestResult", "LogUnitTestResult"):
            counted["tests"] += 1

    outcome = _invoke(databases, ["build", "--log-level", "none"], [show])
    failures = _failures(outcome)
    if failures or not outcome.success:
        raise BuildError("\n".join(failures or [f"dbt did not run: {outcome.exception}"]))
    print(f"{counted['tests']} tests passed", file=sys.stderr)


def run(databases: Databases, arguments: Sequence[str]) -> int:
    """Run a dbt command with its own output; return its exit code."""
    outcome = _invoke(databases, arguments, [])
    return 0 if outcome.success else 1


def _invoke(databases: Databases, arguments: Sequence[str], callbacks: list[Any]) -> Any:
    os.environ.update(_environment(databases))
    from dbt.cli.main import dbtRunner  # noqa: PLC0415 takes seconds to import

    folders = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)]
    return dbtRunner(callbacks=callbacks).invoke([*arguments, *folders])


def _environment(databases: Databases) -> dict[str, str]:
    """Return what dbt/profiles.yml reads; dbt works as `transformer` where that role has a URL."""
    url = databases.environment.get("TRANSFORMER_DATABASE_URL") or databases.urls["TARGET_DATABASE_URL"]
    try:
        parts = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError as error:
        raise UnavailableError("TRANSFORMER_DATABASE_URL or TARGET_DATABASE_URL is not a libpq URL") from error
    return {
        "DBT_HOST": parts.get("host", "localhost"),
        "DBT_PORT": parts.get("port", "5432"),
        "DBT_USER": parts.get("user", ""),
        "DBT_ENV_SECRET_PASSWORD": parts.get("password", ""),
        "DBT_DBNAME": parts.get("dbname", ""),
        "DBT_SSLMODE": parts.get("sslmode", "prefer"),
    }


def _failures(outcome: Any) -> list[str]:
    """Return a line for each model or test that failed, with the reason and where to look."""
    results = getattr(outcome.result, "results", None) or []
    failed = [result for result in results if str(result.status) in ("error", "fail", "runtime error")]
    return [
        f"{result.node.name}: {' '.join(str(result.message).split())}; see {result.node.original_file_path} in dbt/"
        for result in failed
    ]
