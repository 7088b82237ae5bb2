"""Runs dbt commands in one long-lived process, which has parsed the project once: seconds less for each command.

The project is parsed without its tests: they are five of six nodes, and every command goes through all nodes.

Reads one JSON list of arguments a line, and answers each with one JSON object: `is_success`, `log` and `manifest_path`.
Without a manifest of its own, a command would parse the project again. Begin at `main`.
"""

import copy
import json
import os
import sys

from dbt.cli.main import dbtRunner
from dbt.parser.schema_generic_tests import SchemaGenericTestParser
from dbt_common.events.base_types import DebugLevel
from dbt_common.events.event_manager import EventManager

SILENT = ("--log-level", "none", "--log-level-file", "none")  # a line for each event takes a tenth of the time


def drop_debug_events():
    """Have dbt not put together what nobody reads: a fifth of its work."""
    fire = EventManager.fire_event

    def fire_event(manager, event, *arguments, **options):
        if not isinstance(event, DebugLevel):
            fire(manager, event, *arguments, **options)

    DebugLevel.__init__ = lambda self, *_, **__: None
    EventManager.fire_event = fire_event


def invoke(manifest, arguments):
    """Run one command; return its result and what it has said, at level info and above."""
    said = []

    def note(event):
        if event.info.level != "debug":  # a level is also given to an event as it is fired
            said.append(event.info.msg)

    # A command leaves what it has compiled in the manifest it was given.
    result = dbtRunner(manifest=copy.deepcopy(manifest), callbacks=[note]).invoke(arguments)
    if result.exception:
        said.append(repr(result.exception))
    return result, "\n".join(said)


def without_tests(manifest):
    """Remove the tests that dbt has parsed all the same: those that are files of SQL, and the unit tests."""
    manifest.nodes = {name: node for name, node in manifest.nodes.items() if node.resource_type != "test"}
    manifest.unit_tests = {}
    manifest.build_flat_graph()
    return manifest


def main():
    SchemaGenericTestParser.parse_tests = lambda *_: None
    drop_debug_events()
    # Whatever dbt prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    common = sys.argv[1:]
    manifest = None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "parse":
            result, log = invoke(None, [command, *arguments, *common])
            manifest = without_tests(result.result)
        else:
            flags = [] if {"--write-json", "retry"} & {command, *arguments} else ["--no-write-json"]
            result, log = invoke(manifest, [*flags, *SILENT, command, *arguments, *common])
        answers.write(json.dumps({"is_success": result.success, "log": log}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
