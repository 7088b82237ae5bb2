"""Which tests are fast, which go to which process of pytest-xdist, and in what order. Begin at `Distribution`.

Tests that share what is costly to make stay together: those of a file with fixtures of its whole module, and those of a
folder with fixtures of its whole package. All others go one by one to the process that is free, the longest first, so
that no process is left alone with a long one at the end.
"""

import re
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
PROCESSES_PER_CORE = 2  # a test waits for a server or a program of its own for half of its time
MOST_PROCESSES = 8
SHARED_BY_A_FILE = re.compile(r"scope=\"(?:module|session)\"")
SHARED_BY_A_FOLDER = re.compile(r"scope=\"package\"")
# Those that take longest; what is not named here follows in its own order. A process is given two units at first, and
# one more while it has two tests to play: so a long test stands among units of many.
LONGEST_FIRST = (
    "tests/end_to_end/test_pipeline.py::test_second_pipeline_run",
    "tests/integration/dbt/test_data_quality.py",
    "tests/integration/dbt/test_each_change.py",
    "tests/integration/dbt/test_runs_and_builds.py",
    "tests/integration/dbt/test_random_histories.py",
    "tests/integration/dbt/test_project.py",
    "tests/integration/deploy",
    "tests/integration/operations",
    "tests/end_to_end",
    "tests/integration/dbt",
    "tests/integration/etl/test_whole_histories.py",
    "tests/integration/etl/test_fence_histories.py",
    "tests/integration/etl/test_shared_runs.py",
    "tests/integration/etl/test_faults.py",
    "tests/integration/etl/test_server_faults.py",
    "tests/integration/etl/test_discover.py",
    "tests/integration/etl/test_exact_values.py",
    "tests/integration/etl/test_fence_cases.py",
    "tests/integration/transform",
    "tests/integration/etl",
)

# What `--fast` plays: a minute on two cores, for use while working. Each is about what a run does most of all.
FAST = (
    "tests/unit/",
    "tests/integration/etl/test_replication.py",
    "tests/integration/etl/test_late_commits.py",
    "tests/integration/etl/test_sessions.py",
    "tests/integration/etl/test_vacuum.py",
    "tests/integration/etl/test_messages.py",
)
SLOW_AMONG_THEM = ("tests/unit/test_servers.py",)  # it starts pytest


class Distribution(LoadScopeScheduling):
    """Hands out one unit after the other, in the order of collection; a unit is what stays together."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the most tests are not the longest

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """Return the name of the unit that a test belongs to: its folder, its file or itself."""
    path = nodeid.partition("::")[0]
    folder, _, _ = path.rpartition("/")
    if _has(f"{folder}/conftest.py", SHARED_BY_A_FOLDER):
        return folder
    is_shared = _has(path, SHARED_BY_A_FILE) or _has(f"{folder}/conftest.py", SHARED_BY_A_FILE)
    return path if is_shared else nodeid


def is_fast(nodeid: str) -> bool:
    """Tell whether `--fast` plays a test."""
    return nodeid.startswith(FAST) and not nodeid.startswith(SLOW_AMONG_THEM)


@cache
def _has(path: str, scope: re.Pattern[str]) -> bool:
    file = TESTS.parent / path
    return file.exists() and scope.search(file.read_text(encoding="utf-8")) is not None


def rank(nodeid: str) -> int:
    """Return where a test comes in the order: first those that take longest."""
    for place, prefix in enumerate(LONGEST_FIRST):
        if nodeid.startswith(prefix):
            return place
    return len(LONGEST_FIRST)
