"""Runs dbt on the project's models, in this process: one start for models and rules costs seconds, not minutes.

Begin at `build`. What dbt answers is told by `rules`; here it is called, and its files are put in place.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg2.extensions

from etl.errors import EtlError, UnavailableError
from etl.local import rules
from etl.local.databases import CHECKOUT, Databases

PROJECT = CHECKOUT / "dbt"
DOCS_FOLDER = CHECKOUT / "dist" / "docs"


class BuildError(EtlError):
    """A model or a rule of the dbt project failed."""


class StaleError(EtlError):
    """No run has succeeded for longer than the sources allow."""


def build(databases: Databases) -> None:
    """Build all models and check all rules, a line for each model.

    Rules that only warn are told on standard error. Raises BuildError with what failed and what was not built for it.
    """
    counted = {"checks": 0}

    def show(event: Any) -> None:
        if event.info.name == "LogModelResult":
            node = event.data.node_info
            # One write a line: models end in several threads.
            sys.stderr.write(f"{node.node_relation.schema}.{node.node_name}: {event.data.status.lower()}\n")
        elif event.info.name in ("LogTestResult", "LogUnitTestResult"):
            counted["checks"] += 1

    outcome = _invoke(databases, ["build", "--log-level", "none"], [show])
    results = getattr(outcome.result, "results", None) or []
    warnings = rules.describe_warnings(results)
    failures = rules.describe_failures(results)
    where = [_place_of_rows(databases)] if rules.has_rows_to_see(results) else []
    if not outcome.success:
        raise BuildError("\n".join([*warnings, *(failures or [_reason(outcome)]), *where]))
    for line in [*warnings, *where]:
        print(line, file=sys.stderr)
    passed = counted["checks"] - len(warnings)
    print(f"{passed} tests passed" + (f", {len(warnings)} warned" if warnings else ""), file=sys.stderr)


def check_freshness(databases: Databases) -> None:
    """Tell how old the newest run that succeeded is; raises StaleError when that is more than the sources allow."""
    outcome = _invoke(databases, ["source", "freshness", "--log-level", "none"], [])
    results = getattr(outcome.result, "results", None) or []  # hooks of the project among them
    lines = [rules.describe_freshness(result) for result in results if result.node.resource_type == "source"]
    if not outcome.success or not lines:
        raise StaleError("\n".join(lines or [_reason(outcome)]))
    print("\n".join(lines))


def write_docs(databases: Databases, folder: Path = DOCS_FOLDER) -> Path:
    """Write the documentation of all models as one HTML file that needs no server; return its path."""
    outcome = _invoke(databases, ["docs", "generate", "--static", "--log-level", "none"], [])
    if not outcome.success:
        raise BuildError(_reason(outcome))
    folder.mkdir(parents=True, exist_ok=True)
    target = PROJECT / os.environ.get("DBT_TARGET_PATH", "target")
    return Path(shutil.copyfile(target / "static_index.html", folder / "index.html"))


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


def _reason(outcome: Any) -> str:
    return f"dbt did not run: {rules.cut_reason(outcome.exception or 'it gave no reason')}"


def _place_of_rows(databases: Databases) -> str:
    program = "make psql ROLE=transformer" if databases.is_target_embedded else "psql as the role that runs dbt"
    return f"rows that break a rule are in schema audit, which analysts do not see: {program}"
