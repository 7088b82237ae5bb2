"""What is measured: for each task its preparation, which is not measured, and the contenders' commands in turn.

A task is a function that yields the samples of one turn. Begin at `TASKS`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from psycopg2 import sql

from bench.contenders import Contender, Tidemark
from bench.copies import Copies, as_sample
from bench.data import FOUR_TABLES, MANY_TABLES, ORDERS, TENFOLD_ORDERS, Place, Table
from bench.figures import Sample
from bench.load import Load
from bench.measures import Measurement, measure
from bench.stage import create_database, execute
from source_db import schema, seed

# Longer than the fence's margin, 5 s, within which rows would be read again; runs at usual intervals do not do that.
SETTLE_SECONDS = 6.0
ALONE = "none"
PLAIN_QUERY = "plain query"
SIDES = ("SOURCE_DATABASE_URL", "TARGET_DATABASE_URL")
# Each side of a comparison uses one process.
NO_PARALLEL_QUERY = {"PGOPTIONS": "-c max_parallel_workers_per_gather=0"}
# What docs/configuration.md recommends for a busy source.
GENTLE = {"ETL_MAX_SOURCE_MB_PER_SECOND": "10", "ETL_MAX_SNAPSHOT_SECONDS": "1"}
EXAMPLE_SHOP = "example_shop"


@dataclass
class Bench:
    """The copies, and what tasks keep from turn to turn."""

    copies: Copies
    load_seconds: float
    load: Load | None = None
    pipeline_environment: Mapping[str, str] = field(default_factory=dict)

    def contenders(self, turn: int) -> Sequence[Contender]:
        """Return the contenders in the order of a turn, which is reversed in every other turn."""
        return self.copies.contenders[::-1] if turn % 2 else self.copies.contenders


Task = Callable[[Bench, int], Iterator[Sample]]


def run(bench: Bench, tasks: Sequence[str], repeat: int, say: Callable[[str], None]) -> Iterator[Sample]:
    """Yield the samples of some tasks, turn by turn. Each turn loads the shop's tables again."""
    for turn in range(repeat):
        for place in (ORDERS, FOUR_TABLES):  # of one database: changes for one make copies of the other stale
            bench.copies.forget(place)
        for name in tasks:
            say(f"turn {turn + 1} of {repeat}: {TASKS[name][0]} ...")
            for sample in TASKS[name][1](bench, turn):
                say(f"  {sample.contender}: {sample.fault or f'{sample.seconds:.2f} s'}")
                yield replace(sample, task=TASKS[name][0], turn=turn)


def load(place: Place, bench: Bench, turn: int) -> Iterator[Sample]:
    """Load everything."""
    for contender in bench.contenders(turn):
        yield bench.copies.load(contender, place)
    if place is not ORDERS:
        bench.copies.forget(place)


def update(place: Place, bench: Bench, turn: int) -> Iterator[Sample]:
    """Copy changed orders, as many as 1 % of `--rows`."""
    bench.copies.require(place)
    since = bench.copies.sources.change_orders(place)
    for contender in bench.contenders(turn):
        yield bench.copies.work(contender, place, contender.update(place, since))


def find_nothing(place: Place, bench: Bench, turn: int) -> Iterator[Sample]:
    """Find that nothing has changed since the last time."""
    bench.copies.require(place)
    time.sleep(SETTLE_SECONDS)
    since = bench.copies.sources.read_clock(place)
    for contender in bench.contenders(turn):
        command = contender.update(place, since)
        bench.copies.run_untimed(contender, place, command)
        yield bench.copies.work(contender, place, command)


def reconcile(bench: Bench, turn: int) -> Iterator[Sample]:
    """Copy deletes, and compute checksums of all keys with the plain query.

    The copy of a contender that cannot copy deletes is dropped, because it would be wrong from then on.
    """
    copies = bench.copies
    copies.require(FOUR_TABLES)
    copies.sources.delete_rows(FOUR_TABLES, turn)
    works = [partial(_reconcile_by, bench, contender) for contender in copies.contenders]
    project = copies.of(Tidemark)
    if project is not None:
        works.append(partial(_ask_plainly, bench, project, Table.keys))
    for work in works[::-1] if turn % 2 else works:
        copies.rest()
        yield from work()


def _reconcile_by(bench: Bench, contender: Contender) -> Iterator[Sample]:
    command = contender.reconcile(FOUR_TABLES)
    if command is None:
        bench.copies.forget(FOUR_TABLES, contender)
        return
    measured = bench.copies.run(contender, FOUR_TABLES, command, NO_PARALLEL_QUERY)
    yield bench.copies.judge(contender, FOUR_TABLES, measured)


def verify(bench: Bench, turn: int) -> Iterator[Sample]:
    """Compare both sides with this project and with the plain query."""
    project = bench.copies.of(Tidemark)
    if project is None:
        return
    bench.copies.require(FOUR_TABLES)
    works = [partial(_verify_by_project, bench, project), partial(_ask_plainly, bench, project, Table.content)]
    for work in works[::-1] if turn % 2 else works:
        bench.copies.rest()
        yield from work()


def _verify_by_project(bench: Bench, project: Contender) -> Iterator[Sample]:
    assert isinstance(project, Tidemark)
    measured = bench.copies.run(project, FOUR_TABLES, project.verify(FOUR_TABLES), NO_PARALLEL_QUERY)
    yield as_sample(project.name, measured)


def _ask_plainly(
    bench: Bench, project: Contender, query: Callable[[Table, sql.Composable], sql.Composable]
) -> Iterator[Sample]:
    """Run a query on all tables of each side, one side after the other; yield the slower side."""
    stage, tables = bench.copies.stage, bench.copies.sources.tables(FOUR_TABLES)
    rows_of: Sequence[Callable[[Table], sql.Composable]] = (lambda table: sql.Identifier(table.name), project.rows)
    measured = []
    for url, rows in zip(SIDES, rows_of, strict=True):
        queries = " ".join(f"-c {shlex.quote(stage.text(query(table, rows(table))))}" for table in tables)
        command = f'{stage.psql} "${url}" {queries}'
        measured.append(bench.copies.run(project, FOUR_TABLES, command, NO_PARALLEL_QUERY))
    yield as_sample(PLAIN_QUERY, max(measured, key=lambda side: side.seconds))


def scan(bench: Bench, turn: int) -> Iterator[Sample]:
    """Find rows that were written without a change of their watermark, and scan the same table with a plain query."""
    copies = bench.copies
    project = copies.of(Tidemark)
    if project is None:
        return
    copies.require(ORDERS)
    command = project.update(ORDERS, "")
    for _ in range(2):  # the second one reads nothing, so the counts of the source are explained
        copies.run_untimed(project, ORDERS, command)
    copies.sources.write_silently(ORDERS, turn)
    works = [partial(_scan_by_project, bench, project, command), partial(_scan_plainly, bench, project)]
    for work in works[::-1] if turn % 2 else works:
        copies.rest()
        yield work()


def _scan_by_project(bench: Bench, project: Contender, command: str) -> Sample:
    measured = bench.copies.run(project, ORDERS, command, NO_PARALLEL_QUERY)
    return bench.copies.judge(project, ORDERS, measured)


def _scan_plainly(bench: Bench, project: Contender) -> Sample:
    """Count the rows of the heap in one process."""
    stage, (table,) = bench.copies.stage, bench.copies.sources.tables(ORDERS)
    count = stage.text(sql.SQL("select count(*) from {}").format(sql.Identifier(table.name)))
    command = f'{stage.psql} "$SOURCE_DATABASE_URL" -c "set enable_indexonlyscan = off" -c {shlex.quote(count)}'
    return as_sample(PLAIN_QUERY, bench.copies.run(project, ORDERS, command, NO_PARALLEL_QUERY))


def work_beside_others(bench: Bench, turn: int) -> Iterator[Sample]:
    """Measure pgbench alone on the source, and while each contender loads everything from the same database."""
    copies = bench.copies
    load = bench.load = bench.load or Load(copies.stage, copies.sources.url(ORDERS))
    works = [partial(_leave_alone, bench, load)]
    works += [partial(_load_beside, bench, load, contender) for contender in copies.contenders]
    project = copies.of(Tidemark)
    if project is not None:
        works.append(partial(_load_beside, bench, load, project, GENTLE))
    for work in works[::-1] if turn % 2 else works:
        yield work()
    copies.forget(ORDERS)


def _leave_alone(bench: Bench, load: Load) -> Sample:
    with load.counted() as count:
        time.sleep(bench.load_seconds)
    speed = count.transactions_per_second
    return Sample(task="", turn=0, contender=ALONE, seconds=bench.load_seconds, source_transactions_per_second=speed)


def _load_beside(bench: Bench, load: Load, contender: Contender, settings: Mapping[str, str] | None = None) -> Sample:
    contender.prepare(ORDERS)
    execute(bench.copies.stage.target.url(), "checkpoint")  # a checkpoint on the source would slow pgbench
    with load.counted() as count:
        measured = bench.copies.run(contender, ORDERS, contender.load(ORDERS), settings)
    sample = bench.copies.judge(contender, ORDERS, measured)
    name = f"{contender.name}, throttled" if settings else contender.name
    return replace(sample, contender=name, source_transactions_per_second=count.transactions_per_second)


def run_pipeline(bench: Bench, _turn: int) -> Iterator[Sample]:
    """Run `make pipeline` on the example shop, with nothing changed since the last time."""
    if not bench.pipeline_environment:
        bench.pipeline_environment = _seed_pipeline(bench)
        _make_pipeline(bench)
        time.sleep(SETTLE_SECONDS)
    bench.copies.rest()
    yield as_sample(Tidemark.name, _make_pipeline(bench))


def _seed_pipeline(bench: Bench) -> Mapping[str, str]:
    stage = bench.copies.stage
    for server in (stage.source, stage.target):
        create_database(server, EXAMPLE_SHOP)
    schema.apply(stage.source.url(EXAMPLE_SHOP))
    seed.load(stage.source.url(EXAMPLE_SHOP))
    of_outer_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    urls = stage.urls(EXAMPLE_SHOP, EXAMPLE_SHOP)
    return {name: value for name, value in urls.items() if name not in of_outer_make}


def _make_pipeline(bench: Bench) -> Measurement:
    stage = bench.copies.stage
    return measure("make pipeline", bench.pipeline_environment, stage.source, stage.target)


# By name on the command line: the text in the tables of figures, and the function. A turn runs them in this order.
TASKS: Mapping[str, tuple[str, Task]] = {
    "load": ("full load", partial(load, ORDERS)),
    "load-four": ("full load, four tables", partial(load, FOUR_TABLES)),
    "change": ("1 % changed", partial(update, ORDERS)),
    "nothing": ("nothing changed, four tables", partial(find_nothing, FOUR_TABLES)),
    "verify": ("verify, four tables", verify),
    "reconcile": ("0.1 % deleted, four tables", reconcile),
    "scan": ("0.1 % written below the watermark", scan),
    "change-tenfold": ("as many changed, ten times the rows", partial(update, TENFOLD_ORDERS)),
    "nothing-many": ("nothing changed, 100 tables", partial(find_nothing, MANY_TABLES)),
    "source-load": ("full load beside pgbench", work_beside_others),
    "pipeline": ("make pipeline, nothing changed", run_pipeline),
}
DEFAULT_TASKS = tuple(name for name in TASKS if name != "pipeline")
