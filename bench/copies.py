"""The contenders' copies: makes those that a task starts from, measures the command that changes one, and checks it.

Only commands are measured; making, resting and checking are not. Begin at `Copies`.
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
    """Which contender has a copy of which place, on the target."""

    def __init__(self, stage: Stage, sources: Sources, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.stage, self.sources, self._say = stage, sources, say
        self.contenders = [CONTENDERS[name](stage, sources) for name in names]
        self._present: set[str] = set()  # target databases

    def of(self, kind: type[Contender]) -> Contender | None:
        """Return the contender of a kind, if it takes part."""
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
        """Drop the copies of a place, or those of some contenders."""
        for contender in contenders or self.contenders:
            drop_database(self.stage.target, contender.database(place))
            self._present.discard(contender.database(place))

    def load(self, contender: Contender, place: Place) -> Sample:
        """Load an empty copy, measured."""
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
        """Check a copy, and make a sample of how it came to be."""
        found = as_sample(contender.name, measured)
        return found if found.fault else replace(found, fault=self._find_fault(contender, place))

    def run_untimed(self, contender: Contender, place: Place, command: str) -> None:
        """Run a command before the one that counts; when it fails, the copy is found wrong afterwards."""
        error = self.run(contender, place, command).error
        if error:
            self._say(f"  {contender.name} failed before its time was taken: {error}")

    def run(
        self, contender: Contender, place: Place, command: str, settings: Mapping[str, str] | None = None
    ) -> Measurement:
        environment = {**contender.environment(place), **(settings or {})}
        return measure(command, environment, self.stage.source, self.stage.target)

    def rest(self) -> None:
        """Write out what the last command left in the servers' memory, so that the next one does not pay for it."""
        for server in (self.stage.source, self.stage.target):
            execute(server.url(), "checkpoint")

    def _find_fault(self, contender: Contender, place: Place) -> str | None:
        return next(self._faults(contender, place), None)

    def _faults(self, contender: Contender, place: Place) -> Iterator[str]:
        for table in self.sources.tables(place):
            wanted = self.sources.content(place, table)
            try:
                found = self._content(contender, place, table)
            except psycopg2.Error as error:
                yield f"{table.name} cannot be read: {error}"
                continue
            if found[0] != wanted[0]:
                yield f"{table.name}: expected {wanted[0]:,} rows, found {found[0]:,}"
            elif found != wanted:
                yield f"{table.name}: its rows differ from those of the source"

    def _content(self, contender: Contender, place: Place, table: Table) -> tuple[Any, ...]:
        url = self.stage.target.url(contender.database(place))
        return fetch(url, table.content(contender.rows(table)))[0]


def as_sample(name: str, measured: Measurement) -> Sample:
    """Make a sample of a measurement; task and turn are filled in later."""
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
