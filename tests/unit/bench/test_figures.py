"""Medians and ratios of samples, and what becomes of a wrong one."""

import pytest

from bench import figures
from bench.figures import Figures, Sample


def sample(contender, seconds, task="full load", turn=0, **others):
    return Sample(task=task, contender=contender, turn=turn, seconds=seconds, **others)


def taken(*samples, rows=1000):
    return Figures(rows=rows, repeat=3, machine={"processors": 2}, samples=samples)


def test_medians_are_over_turns_and_ratios_over_medians():
    found = taken(*(sample("tidemark", seconds) for seconds in (1.0, 9.0, 2.0)), sample("psql binary", 4.0))

    assert found.median("full load", "tidemark") == 2.0
    assert found.ratio("full load", "tidemark", "psql binary") == 0.5
    assert found.spread("full load", "tidemark") == (1.0, 9.0)


def test_unmeasured_figures_have_no_median_and_no_ratio():
    found = taken(sample("tidemark", 1.0))

    assert found.median("full load", "tutorial") is None
    assert found.ratio("full load", "tidemark", "tutorial") is None
    assert found.median("full load", "tidemark", lambda each: each.source_transactions_per_second) is None


def test_one_wrong_sample_removes_the_median():
    found = taken(sample("tutorial", 1.0), sample("tutorial", 1.0, fault="orders: expected 10 rows, found 9"))

    assert found.median("full load", "tutorial") is None
    assert found.fault("full load", "tutorial") == "orders: expected 10 rows, found 9"


@pytest.mark.parametrize("fault", [None, "failed: no such table"])
def test_file_returns_what_was_written(tmp_path, fault):
    found = taken(sample("tidemark", 1.25, peak_memory_bytes=5, fault=fault))

    figures.write(found, tmp_path / "figures.json")

    assert figures.read(tmp_path / "figures.json") == found
