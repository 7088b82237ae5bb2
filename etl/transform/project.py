"""Runs dbt on the project's models in this process: starting it once for models and rules saves minutes.

It runs one command at a time on a warehouse and puts dbt's files in place; `rules` describes the results.
Begin at `build`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.database_url import TLS_VARIABLES, read_url
from etl.errors import EtlError
from etl.text import printable
from etl.transform import rules
from etl.transform.lock import Build, build_lock, open_build
from etl.transform.manifest import FINGERPRINT_VARIABLE, PROJECT, fingerprint, manifest_path

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS_FOLDER = CHECKOUT / "dist" / "docs"
WITHOUT_TESTS = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
ROWS_PLACE = "rows that break a rule are in schema audit, which analysts cannot read"
PROGRAM = "psql as the role that runs dbt"


class BuildError(EtlError):
    """A model of the dbt project failed."""

    is_transient = True


class BrokenRuleError(BuildError):
    """Rules of the dbt project are broken and nothing else failed: on a retry, the same rows break them again."""

    is_transient = False


class StaleError(EtlError):
    """No run has succeeded for longer than the sources allow."""


def build(environment: Mapping[str, str], *, program: str = PROGRAM) -> None:
    """Build all models and check all rules; print a line for each model to standard error.

    Prints rules that only warn as well, and names `program` as the way to read the rows that break them. Raises
    BuildError with what failed and what was not built because of it.
    """
    _execute(environment, ["build"], shown=("LogModelResult",), program=program)


def build_models(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Build snapshots and models, and print a line for each; return each node's status. Raises BuildError."""
    shown = ("LogModelResult", "LogSnapshotResult")
    return _execute(environment, ["build", *WITHOUT_TESTS, *arguments], shown=shown)


def check_rules(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Check all rules, and print a line for each; return each rule's status. Raises BrokenRuleError or BuildError."""
    shown = ("LogTestResult", "LogUnitTestResult")
    return _execute(environment, ["test", *arguments], shown=shown)


def check_freshness(environment: Mapping[str, str]) -> list[str]:
    """Return lines that say how long ago the newest successful run ended.

    Raises StaleError when that is longer than the sources allow, and BuildError when dbt cannot determine it.
    """
    outcome = _invoke(environment, ["source", "freshness", "--log-level", "none"], [])
    results = getattr(outcome.result, "results", None) or []  # includes hooks of the project
    lines = [rules.describe_freshness(result) for result in results if result.node.resource_type == "source"]
    if not lines or any(result.status == "runtime error" for result in results):
        raise BuildError(*(lines or [_reason(outcome)]))
    if not outcome.success:
        raise StaleError(*lines)
    return lines


def write_docs(environment: Mapping[str, str], folder: Path = DOCS_FOLDER) -> Path:
    """Write the documentation of all models as one HTML file that needs no server; return its path."""
    outcome = _invoke(environment, ["docs", "generate", "--static", "--log-level", "none"], [])
    if not outcome.success:
        raise BuildError(_reason(outcome))
    folder.mkdir(parents=True, exist_ok=True)
    target = PROJECT / os.environ.get("DBT_TARGET_PATH", "target")
    return Path(shutil.copyfile(target / "static_index.html", folder / "index.html"))


def begin_build(environment: Mapping[str, str], build: Build) -> None:
    """Open a build in parts, and create what its parts cannot create concurrently: schemas and the table of builds."""
    url = find_url(environment)
    variables = profile_variables(url)
    with open_build(environment, url, build) as options:
        outcome = _run_dbt(options | variables, ["run-operation", "prepare_schemas", "--log-level", "none"], [])
        if not outcome.success:
            raise BuildError(_reason(outcome))


def write_manifest() -> Path:
    """Have dbt parse the project and write the manifest for Airflow; return its path.

    Connects to no database. Replaces the file atomically: on an error, the old one stays.
    """
    target = manifest_path()
    with tempfile.TemporaryDirectory(prefix="tidemark-") as folder:
        os.environ[FINGERPRINT_VARIABLE] = fingerprint()
        folders = ["--target-path", folder, "--log-path", folder]
        outcome = _run_dbt({}, ["parse", "--no-partial-parse", "--log-level", "none", *folders], [])
        if not outcome.success:
            raise BuildError(_reason(outcome))
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(Path(folder) / "manifest.json", written)
        return written.replace(target)


def run(environment: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run a dbt command with its own output; return its exit code."""
    outcome = _invoke(environment, arguments, [])
    return 0 if outcome.success else 1


def _execute(
    environment: Mapping[str, str], arguments: Sequence[str], *, shown: Sequence[str], program: str = PROGRAM
) -> list[dict[str, Any]]:
    """Run dbt and print a line for each event named in `shown`; return its nodes, or raise what failed."""
    counted = {"checks": 0}

    def show(event: Any) -> None:
        if event.info.name in shown:
            # One write per line, because models end in several threads.
            sys.stderr.write(f"{printable(_label(event.data))}: {event.data.status.lower()}\n")
        if event.info.name in ("LogTestResult", "LogUnitTestResult"):
            counted["checks"] += 1

    outcome = _invoke(environment, [*arguments, "--log-level", "none"], [show])
    results = getattr(outcome.result, "results", None) or []
    warnings = rules.describe_warnings(results)
    failures = rules.describe_failures(results)
    where = [f"{ROWS_PLACE}: {program}"] if rules.has_rows_to_see(results) else []
    if not outcome.success:
        kind = BrokenRuleError if rules.is_broken_by_rows_alone(results) else BuildError
        raise kind(*warnings, *(failures or [_reason(outcome)]), *where)
    for line in [*warnings, *where]:
        print(printable(line), file=sys.stderr)
    if counted["checks"]:
        passed = counted["checks"] - len(warnings)
        print(f"{passed} tests passed" + (f", {len(warnings)} warned" if warnings else ""), file=sys.stderr)
    return rules.result_records(results)


def _label(data: Any) -> str:
    node = data.node_info
    schema = node.node_relation.schema
    return f"{schema}.{node.node_name}" if schema and node.resource_type != "test" else str(node.node_name)


def _invoke(environment: Mapping[str, str], arguments: Sequence[str], callbacks: list[Any]) -> Any:
    url = find_url(environment)
    variables = profile_variables(url)
    with build_lock(environment, url) as options:
        return _run_dbt(options | variables, arguments, callbacks)


def _run_dbt(variables: Mapping[str, str], arguments: Sequence[str], callbacks: list[Any]) -> Any:
    os.environ.update(variables)
    from dbt.cli.main import dbtRunner  # noqa: PLC0415 takes seconds to import

    folders = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)]
    return dbtRunner(callbacks=callbacks).invoke([*arguments, *folders])


def find_url(environment: Mapping[str, str]) -> str:
    """Return the URL that dbt uses: TRANSFORMER_DATABASE_URL if set, else TARGET_DATABASE_URL."""
    return environment.get("TRANSFORMER_DATABASE_URL") or environment["TARGET_DATABASE_URL"]


def profile_variables(url: str) -> dict[str, str]:
    """Return the environment variables that dbt/profiles.yml reads. Raises ConfigurationError for an invalid URL."""
    parts = read_url(url, "TRANSFORMER_DATABASE_URL or TARGET_DATABASE_URL")
    return {
        "DBT_HOST": parts.get("host", "localhost"),
        "DBT_PORT": parts.get("port", "5432"),
        "DBT_USER": parts.get("user", ""),
        "DBT_ENV_SECRET_PASSWORD": parts.get("password", ""),
        "DBT_DBNAME": parts.get("dbname", ""),
        **{f"DBT_{name.upper()}": parts.get(name, default) for name, default in _tls_defaults().items()},
    }


def _tls_defaults() -> dict[str, str]:
    """Return libpq's TLS settings, for a URL without them: the profile always sets these, so it must repeat them."""
    return {name: os.environ.get(variable, "") for name, variable in TLS_VARIABLES.items()} | {
        "sslmode": os.environ.get("PGSSLMODE") or "prefer"
    }


def _reason(outcome: Any) -> str:
    return f"dbt did not run: {rules.cut_reason(outcome.exception or 'it gave no reason')}"
