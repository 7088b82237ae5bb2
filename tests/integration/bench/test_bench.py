"""The bench runs from start to end, and every contender's copy is right after each of its commands."""

import subprocess
import sys

from bench import figures

TASKS = ["load", "load-four", "change", "verify", "reconcile", "scan"]


def test_all_contenders_end_with_the_rows_of_the_source(tmp_path):
    path = tmp_path / "figures.json"

    finished = subprocess.run(
        [sys.executable, "-m", "bench", "--rows", "2000", "--repeat", "1", "--tasks", ",".join(TASKS), "--json", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = figures.read(path)
    assert len(found.tasks) == len(TASKS)
    assert {"tidemark", "psql binary", "psql text", "tutorial", "plain query"} == set(found.contenders)
    assert [sample.fault for sample in found.samples if sample.fault] == []
    assert "tidemark / psql binary" in finished.stdout
