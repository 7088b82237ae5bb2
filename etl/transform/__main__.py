"""`python -m etl.transform COMMAND`: one dbt command in a process of its own, for an orchestrator.

A line for each node goes to standard error, the outcome as JSON to the file that `--outcome` names. The process ends
with the one that started it, which holds the other end of standard input: a dbt that nobody waits for writes no more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.errors import EtlError
from etl.transform import project
from etl.transform.lock import Build

INTERRUPTED = 130  # as shells report a process that SIGINT ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; write its outcome; return the exit code of `etl.errors`."""
    parser = argparse.ArgumentParser(prog="python -m etl.transform", description="Run dbt on the project's models.")
    parser.add_argument("--outcome", type=Path, required=True, help="where the outcome goes, as JSON")
    parser.add_argument("command", choices=sorted(COMMANDS), help="what to do")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to dbt")
    given = parser.parse_args(argv)
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    try:
        outcome = COMMANDS[given.command](os.environ, given.arguments)
        exit_code = 0
    except EtlError as error:
        print(error, file=sys.stderr, flush=True)
        outcome, exit_code = {"error": str(error), "is_transient": error.is_transient}, error.exit_code
    given.outcome.write_text(json.dumps(outcome))
    return exit_code


def models(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    return {"nodes": project.build_models(environment, arguments)}


def check(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return how many rules hold, and those that warn: there are hundreds."""
    nodes = [node for node in project.check_rules(environment, arguments) if node["kind"] in ("test", "unit_test")]
    return {
        "passed": sum(node["status"] == "pass" for node in nodes),
        "nodes": [node for node in nodes if node["status"] != "pass"],
    }


def begin(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    """Open a build in parts, which a name and an owner tell from others."""
    name, owner = arguments
    project.begin_build(environment, Build(name=name, owner=owner))
    return {}


def freshness(environment: Mapping[str, str], _: Sequence[str]) -> dict[str, Any]:
    return {"lines": project.check_freshness(environment)}


def docs(environment: Mapping[str, str], _: Sequence[str]) -> dict[str, Any]:
    return {"lines": [str(project.write_docs(environment))]}


def _end_with_the_other() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a buffer's lock would be held when the process ends
        pass
    os._exit(INTERRUPTED)


COMMANDS: Mapping[str, Callable[[Mapping[str, str], Sequence[str]], dict[str, Any]]] = {
    "begin": begin,
    "models": models,
    "check": check,
    "freshness": freshness,
    "docs": docs,
}

if __name__ == "__main__":
    sys.exit(main())
