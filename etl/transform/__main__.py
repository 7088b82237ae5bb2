"""`python -m etl.transform COMMAND`: run one dbt command in its own process, for an orchestrator.

It prints a line for each node to standard error and writes the outcome, as JSON, to the file given by `--outcome`.
It exits when its parent, which holds the other end of standard input, exits: an orphaned dbt writes nothing more.
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

INTERRUPTED = 130  # the exit code that shells report for a process ended by SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and write its outcome; return an exit code as defined in `etl.errors`."""
    parser = argparse.ArgumentParser(prog="python -m etl.transform", description="Run dbt on the project's models.")
    parser.add_argument("--outcome", type=Path, required=True, help="file to write the outcome to, as JSON")
    parser.add_argument("command", choices=sorted(COMMANDS), help="command to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments, or those of dbt")
    given = parser.parse_args(argv)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
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
    """Return the number of rules that passed, and the nodes of the others only: there are hundreds of rules."""
    nodes = [node for node in project.check_rules(environment, arguments) if node["kind"] in ("test", "unit_test")]
    return {
        "passed": sum(node["status"] == "pass" for node in nodes),
        "nodes": [node for node in nodes if node["status"] != "pass"],
    }


def begin(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    """Open a build in parts; the arguments are its name and its owner."""
    name, owner = arguments
    project.begin_build(environment, Build(name=name, owner=owner))
    return {}


def freshness(environment: Mapping[str, str], _: Sequence[str]) -> dict[str, Any]:
    return {"lines": project.check_freshness(environment)}


def docs(environment: Mapping[str, str], _: Sequence[str]) -> dict[str, Any]:
    return {"lines": [str(project.write_docs(environment))]}


def _exit_with_parent() -> None:
    # Unbuffered, because a buffered read would still hold its lock when the process exits.
    while os.read(sys.stdin.fileno(), 1):
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
