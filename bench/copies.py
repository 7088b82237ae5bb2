"""The contenders' copies: prepares those that a task needs, measures commands that change them, and checks them.

Only the commands are measured, not preparation, checkpoints and checks. Begin at `Copies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psycopg2

from bench.contenders import CONTENDERS, Contender
from bench.data import Place, Sources, Table
from bench.figures import Sample
from bench.measures import Measurement, measure
from bench.stage import Stage, drop_database, execute, fetch


class Copies:
    """Which contender has a copy of which place on the target."""

    def __init__(self, stage: Stage, sources: Sources, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.stage, self.sources, self._say = stage, sources, say
        self.contenders = [CONTENDERS[name](stage, sources) for name in names]
        self._present: set[str] = set()  # target databases

    def of(self, kind: type[Contender]) -> Contender | None:
        """Return the contender of a class, or None if it does not take part."""
        return next((contender for contender in self.contenders if type(contender) is kind), None)

    def require(self, place: Place) -> None:
        """Load the copies of a place that are missing."""
        for contender in self.contenders:
            if contender.database(place) not in self._present:
                self._say(f"  loading {place.name} with {contender.name} ...")
                contender.prepare(place)
                self.run_untimed(contender, place, contender.fill(place))
                self._present.add(contender.database(place))
                execute(self.stage.target.url(contender.database(place)), "vacuum analyze")

    def forget(self, place: Place, *contenders: Contender) -> None:
        """Drop the copies of a place: those of the given contenders, or all."""
        for contender in contenders or self.contenders:
            drop_database(self.stage.target, contender.database(place))
            self._present.discard(contender.database(place))

    def load(self, contender: Contender, place: Place) -> Sample:
        """Measure loading an empty copy, and check the copy."""
        contender.prepare(place)
        found = self.work(contender, place, contender.load(place))
        execute(self.stage.target.url(contender.database(place)), "vacuum analyze")
        self._present.add(contender.database(place))
        return found

    def work(self, contender: Contender, place: Place, command: str) -> Sample:
        """Measure a command that brings a copy up to date, and check the copy."""
        self.rest()
        return self.judge(contender, place, self.run(contender, place, command))

    def judge(self, contender: Contender, place: Place, measured: Measurement) -> Sample:
        """Check a copy, and return a sample of the command that changed it."""
        found = as_sample(contender.name, measured)
        return found if found.fault else replace(found, fault=self._find_fault(contender, place))

    def run_untimed(self, contender: Contender, place: Place, command: str) -> None:
        """Run a command that is not measured; if it fails, the later check finds the copy wrong."""
        error = self.run(contender, place, command).error
        if error:
            self._say(f"  {contender.name} failed before the measurement: {error}")

    def run(
        self, contender: Contender, place: Place, command: str, settings: Mapping[str, str] | None = None
    ) -> Measurement:
        environment = {**contender.environment(place), **(settings or {})}
        return measure(command, environment, self.stage.source, self.stage.target)

    def rest(self) -> None:
        """Run a checkpoint on both servers, so that the next command does not pay for the writes of the last one."""
        for server in (self.stage.source, self.stage.target):
            execute(server.url(), "checkpoint")

    def _find_fault(self, contender: Contender, place: Place) -> str | None:
        return next(self._faults(contender, place), None)

    def _faults(self, contender: Contender, place: Place) -> Iterator[str]:
        for table in self.sources.tables(place):
            expected = self.sources.content(place, table)
            try:
                found = self._content(contender, place, table)
            except psycopg2.Error as error:
                yield f"{table.name} cannot be read: {error}"
                continue
            if found[0] != expected[0]:
                yield f"{table.name}: expected {expected[0]:,} rows, found {found[0]:,}"
            elif found != expected:
                yield f"{table.name}: rows differ from those of the source"

    def _content(self, contender: Contender, place: Place, table: Table) -> tuple[Any, ...]:
        url = self.stage.target.url(contender.database(place))
        return fetch(url, table.content(contender.rows(table)))[0]


def as_sample(name: str, measured: Measurement) -> Sample:
    """Turn a measurement into a sample, without its task and turn."""
    return Sample(
        task="",
        turn=0,
        contender=name,
        seconds=measured.seconds,
        client_cpu_seconds=measured.client_cpu_seconds,
        source_cpu_seconds=measured.source_cpu_seconds,
        target_cpu_seconds=measured.target_cpu_seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        fault=f"failed: {measured.error}" if measured.error else None,
    )
