"""The steps of the pipeline: a function for each scheduled task, with JSON-ready results and log lines.

Every step can be repeated, even after its process was killed: a run continues where the last one stopped, and a build
reads again what an unfinished build has not noted. An error that a retry cannot fix fails the task without a retry.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from etl.commands.run import run
from etl.commands.status import describe_holder, find_source_error, read_status
from etl.commands.vacuum import vacuum_own_tables
from etl.commands.verify import verify
from etl.compare.verdict import describe as describe_verdict
from etl.config import Settings, load_settings, load_target_settings
from etl.display import describe, result_record
from etl.errors import ConfigurationError, EtlError, TableError, UnavailableError
from etl.model import RunOptions
from etl.orchestration.failures import DifferenceError, final_errors
from etl.results import Event, RunResult
from etl.text import printable
from etl.transform.lock import Build, close_build, part_lock
from etl.transform.project import BrokenRuleError, BuildError, find_url, profile_variables

log = logging.getLogger("tidemark")

# By default, dbt only warns about a name that selects nothing.
ALL_MUST_EXIST = ("--warn-error-options", '{"error": ["NoNodesForSelectionCriteria"]}')
STOP_SECONDS = 20  # dbt's time to end its statements before it is killed


def extract_and_load(
    environment: Mapping[str, str],
    tables: Sequence[str] = (),
    options: RunOptions | None = None,
    tombstone_days: float | None = None,
) -> dict[str, Any]:
    """Replicate what changed, at one snapshot; return what was done with each table and what holds it back.

    Raises TableError when a table failed; the others are committed.
    """
    with final_errors():
        settings = load_settings(environment)
        if tombstone_days is not None:
            settings = replace(settings, tables=settings.tables.with_tombstone_days(tombstone_days))
        result = run(settings, tables, observe=log_event, options=options)
        records = describe_tables(settings, result)
        log.info("run %s: %s tables in %.1f s", result.run_id, len(records), result.seconds)
        failed = [f"{record['table']}: {record['error']}" for record in records if record["status"] != "succeeded"]
        if failed:
            raise TableError(f"run {result.run_id}: {len(failed)} of {len(records)} tables failed", *failed)
        return {"run_id": result.run_id, "seconds": round(result.seconds, 3), "tables": records}


def describe_tables(settings: Settings, result: RunResult) -> list[dict[str, Any]]:
    """Log and return what a run did with each table and what holds it back."""
    held_back = _read_holders(settings, [table.table_name for table in result.tables])
    records = [{**result_record(table), "held_back_by": held_back.get(table.table_name, [])} for table in result.tables]
    for record in records:
        holders = "; ".join(record["held_back_by"]) or "nothing"
        line = f"{record['table']}: watermark {record['watermark'] or 'none'}, held back by {holders}"
        log.info("%s", printable(line))
    return records


def reconcile(
    environment: Mapping[str, str], tables: Sequence[str] = (), tombstone_days: float | None = None
) -> dict[str, Any]:
    """Replicate, compare all keys even where the source has counted no deletes, and purge old tombstones.

    `tombstone_days` overrides tables.yml; tombstones that dbt has not read are kept.
    """
    return extract_and_load(environment, tables, RunOptions(reconcile=True), tombstone_days)


def reload(environment: Mapping[str, str], tables: Sequence[str], *, allow_deletes: bool = False) -> dict[str, Any]:
    """Reload tables; readers of raw see the old rows until the new ones are complete."""
    return extract_and_load(environment, tables, RunOptions(full_refresh=True, allow_deletes=allow_deletes))


def compare(environment: Mapping[str, str], tables: Sequence[str] = (), *, is_repair: bool = False) -> dict[str, Any]:
    """Compare source and raw by content; return the verdict on each table. Fails without a retry if one differs."""
    with final_errors():
        verdicts = verify(load_settings(environment), tables, observe=log_event, is_repair=is_repair)
        uncompared = [f"{verdict.table_name}: {verdict.error}" for verdict in verdicts if verdict.error]
        if uncompared:
            raise UnavailableError(*uncompared)
        different = [
            f"{verdict.table_name}: {describe_verdict(verdict)}" for verdict in verdicts if not verdict.is_equal
        ]
        if different:
            raise DifferenceError(f"{len(different)} of {len(verdicts)} tables differ", *different)
        return {"tables": {verdict.table_name: describe_verdict(verdict) for verdict in verdicts}}


def vacuum(environment: Mapping[str, str]) -> dict[str, Any]:
    """Vacuum and analyze the tables of raw and of the models, each side as the role that owns it."""
    with final_errors():
        names = [name for name in ("TARGET_DATABASE_URL", "TRANSFORMER_DATABASE_URL") if name in environment]
        found = [
            table
            for url in dict.fromkeys(environment[name] for name in names)
            for table in vacuum_own_tables(load_target_settings(environment, url))
        ]
        for table in found:
            if table.is_locked:
                log.warning("%s: skipped, because another session has it locked", printable(table.table_name))
            else:
                log.info("%s: vacuumed and analyzed in %.1f s", printable(table.table_name), table.seconds)
        return {
            "tables": {table.table_name: round(table.seconds, 3) for table in found if not table.is_locked},
            "locked": [table.table_name for table in found if table.is_locked],
        }


def refresh_models(environment: Mapping[str, str], models: Sequence[str]) -> dict[str, Any]:
    """Rebuild these models from all rows; skip the task if none is named."""
    if not models:
        from airflow.sdk.exceptions import AirflowSkipException  # noqa: PLC0415 in a task only

        raise AirflowSkipException("no model is named")
    return build_models(environment, ["--full-refresh", *ALL_MUST_EXIST, "--select", *models])


def build_models(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Build snapshots and models; return how each ended. Raises BuildError."""
    return _transform(environment, "models", arguments)


def begin_build(environment: Mapping[str, str], build: Build) -> None:
    """Open a build whose models are built in separate tasks."""
    _transform(environment, "begin", [build.name, build.owner])


@contextmanager
def part_of_build(environment: Mapping[str, str], build: Build, part: str) -> Iterator[None]:
    """Hold one part of an open build during the block, with what dbt needs in this process's environment.

    dbt writes only to the folders that its caller names. Fails without a retry if the build is not open.
    """
    with final_errors():
        url = find_url(environment)
        variables = profile_variables(url)
        with part_lock(environment, url, build, part) as options:
            before = dict(os.environ)
            os.environ.update({**options, **variables, "DBT_USE_COLORS": "false"})
            for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH"):
                os.environ.pop(name, None)
            try:
                yield
            finally:
                os.environ.clear()
                os.environ.update(before)


def end_build(environment: Mapping[str, str], build: Build) -> None:
    """Close a build, whether or not its models were built, so that other builds can run on the warehouse."""
    with final_errors():
        if not close_build(environment, find_url(environment), build):
            log.warning("the build %s was not open: it was closed, or another build replaced it", build.name)


def check_rules(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Check the rules of the models; return how each ended. Fails without a retry if rows break a rule."""
    return _transform(environment, "check", arguments)


def check_freshness(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return how long ago the newest successful run ended. Raises BuildError when the sources allow less."""
    return _transform(environment, "freshness")


def write_docs(environment: Mapping[str, str]) -> dict[str, Any]:
    """Write the documentation of the models; return where it is."""
    return _transform(environment, "docs")


def _transform(environment: Mapping[str, str], command: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run `python -m etl.transform` and return its outcome, or raise the error that it ended with."""
    with final_errors(), tempfile.TemporaryDirectory(prefix="tidemark-") as folder:
        path = Path(folder) / "outcome.json"
        exit_code = _run(environment, ["--outcome", str(path), command, *arguments])
        if not path.exists():
            raise BuildError(f"dbt ended with exit code {exit_code} and no outcome: the lines above say why")
        outcome: dict[str, Any] = json.loads(path.read_text())
        if "error" not in outcome:
            for line in outcome.get("lines", []):
                log.info("%s", printable(line))
            return outcome
        lines = outcome["error"].split("\n")
        if exit_code == ConfigurationError.exit_code:
            raise ConfigurationError(*lines)
        raise (BuildError if outcome["is_transient"] or exit_code != 1 else BrokenRuleError)(*lines)


def _run(environment: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run the process to its end and log each line of its output; stop it if this call is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "etl.transform", *arguments],
        env={**environment, "DBT_USE_COLORS": "false"},
        stdin=subprocess.PIPE,  # when it closes, the process knows that this one has ended
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            log.info("%s", printable(line.rstrip()))
        return process.wait()
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _read_holders(settings: Settings, table_names: Sequence[str]) -> dict[str, list[str]]:
    """Return what holds back the watermarks of these tables; if that cannot be read, the run does not fail."""
    try:
        found = read_status(settings, table_names)
        if source_error := find_source_error(found):
            raise UnavailableError(source_error)
        return {table.table_name: [describe_holder(one) for one in table.holders] for table in found}
    except EtlError as error:
        log.warning("cannot read what holds tables back: %s", error)
        return {}


def log_event(event: Event) -> None:
    """Log an event if it matters to a person who watches the run."""
    line = describe(event)
    if line:
        log.info("%s", line)
