"""The results of a benchmark: samples, their medians and ratios, and the JSON file that stores them.

Begin at `Figures`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measurement of one contender at one task."""

    task: str
    contender: str
    turn: int
    seconds: float
    client_cpu_seconds: float = 0.0
    source_cpu_seconds: float = 0.0
    target_cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    source_transactions_per_second: float | None = None  # of pgbench meanwhile; only in the task source-load
    fault: str | None = None  # why the result is wrong


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The samples of one run, and the machine they were taken on."""

    rows: int
    repeat: int
    machine: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(sample.task for sample in self.samples))

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(sample.contender for sample in self.samples))

    def of(self, task: str, contender: str) -> list[Sample]:
        return [sample for sample in self.samples if (sample.task, sample.contender) == (task, contender)]

    def fault(self, task: str, contender: str) -> str | None:
        """Return the first fault among a contender's samples, or None."""
        return next((sample.fault for sample in self.of(task, contender) if sample.fault), None)

    def median(
        self, task: str, contender: str, value: Callable[[Sample], float | None] = lambda sample: sample.seconds
    ) -> float | None:
        """Return the median over the turns; None if nothing was measured or a sample has a fault."""
        if self.fault(task, contender):
            return None
        found = [number for sample in self.of(task, contender) if (number := value(sample)) is not None]
        return statistics.median(found) if found else None

    def ratio(self, task: str, contender: str, other: str) -> float | None:
        """Return the median seconds of a contender divided by those of another."""
        ours, theirs = self.median(task, contender), self.median(task, other)
        return ours / theirs if ours is not None and theirs else None

    def spread(self, task: str, contender: str) -> tuple[float, float] | None:
        """Return the minimum and maximum seconds."""
        seconds = [sample.seconds for sample in self.of(task, contender)]
        return (min(seconds), max(seconds)) if seconds else None


def write(figures: Figures, path: Path) -> None:
    path.write_text(json.dumps(asdict(figures), indent=1) + "\n")


def read(path: Path) -> Figures:
    record = json.loads(path.read_text())
    return Figures(**{**record, "samples": tuple(Sample(**sample) for sample in record["samples"])})
