"""`python -m bench.report FIGURES.json ...`: Markdown tables of what `python -m bench --json` wrote.

With --into, they replace the tables between the two marks of a page. With --picture, it draws cost against size as an
SVG, from several files. Begin at `tables`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import figures, picture
from bench.figures import Figures, Sample

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PROJECT, LIMIT, TUTORIAL = "tidemark", "psql binary", "tutorial"
PLAIN_QUERY = "plain query"
BESIDE, ALONE = "full load beside pgbench", "none"
MEGABYTE = 1_000_000
WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A caption, a header and rows of text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FIGURES.json", help="what `python -m bench` wrote")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the tables between the marks of this page")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw cost against size to this file, not tables")
    given = parser.parse_args()
    found = [figures.read(path) for path in given.files]
    if given.picture:
        given.picture.write_text(picture.draw(found))
        return 0
    text = "\n\n".join(map(describe, found))
    if given.into:
        given.into.write_text(replace_between_marks(given.into.read_text(), text))
    else:
        print(text)
    return 0


def describe(found: Figures) -> str:
    """Return the figures of one run as Markdown."""
    return "\n\n".join([_conditions(found), *(f"{table.caption}\n\n{_markdown(table)}" for table in tables(found))])


def tables(found: Figures) -> list[ReportTable]:
    """Return the tables of one run, without empty ones."""
    made = (_seconds(found), _comparing(found), _source_load(found), _resources(found))
    return [table for table in made if table.rows]


def align(table: ReportTable) -> str:
    """Return a table as plain text."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.header))]
    texts = [
        "  ".join(text.ljust(width) if not place else text.rjust(width) for place, (text, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([table.caption, *(text.rstrip() for text in texts)])


def replace_between_marks(page: str, text: str) -> str:
    """Return a page with the text between its marks replaced. Raises ValueError if it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the marks {BEGIN} and {END} in the page, found none")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _conditions(found: Figures) -> str:
    machine = "; ".join(f"{name}: {value}" for name, value in found.machine.items())
    return f"{found.rows:,} orders, {found.repeat} turns; {machine}".rstrip("; ") + "."


def _seconds(found: Figures) -> ReportTable:
    tasks = [task for task in found.tasks if task != BESIDE and not _is_of_plain_query_only(found, task)]
    names = [name for name in found.contenders if name != PLAIN_QUERY]
    contenders = [name for name in names if any(found.of(task, name) for task in tasks)]
    return ReportTable(
        caption="Seconds of whole processes: median (minimum-maximum).",
        header=("task", *contenders, f"{PROJECT} / {LIMIT}", f"{TUTORIAL} / {PROJECT}"),
        rows=tuple(
            (
                task,
                *(_spread(found, task, contender) for contender in contenders),
                _ratio(found.ratio(task, PROJECT, LIMIT)),
                _ratio(found.ratio(task, TUTORIAL, PROJECT)),
            )
            for task in tasks
        ),
    )


def _comparing(found: Figures) -> ReportTable:
    return ReportTable(
        caption="Seconds to compare both sides.",
        header=("task", PROJECT, f"{PLAIN_QUERY}, slower side", "ratio"),
        rows=tuple(
            (
                task,
                _spread(found, task, PROJECT),
                _spread(found, task, PLAIN_QUERY),
                _ratio(found.ratio(task, PROJECT, PLAIN_QUERY)),
            )
            for task in found.tasks
            if found.of(task, PLAIN_QUERY)
        ),
    )


def _is_of_plain_query_only(found: Figures, task: str) -> bool:
    return {sample.contender for sample in found.samples if sample.task == task} - {PROJECT} == {PLAIN_QUERY}


def _source_load(found: Figures) -> ReportTable:
    def speed(contender: str) -> float | None:
        return found.median(BESIDE, contender, lambda sample: sample.source_transactions_per_second)

    alone, names = speed(ALONE), [name for name in found.contenders if found.of(BESIDE, name)]
    rows = []
    for name in sorted(names, key=lambda name: name != ALONE):
        beside = speed(name)
        share = _ratio(beside / alone) if beside is not None and alone else ""
        seconds = "" if name == ALONE else _spread(found, BESIDE, name)
        rows.append((name, "" if beside is None else f"{beside:,.0f}", share, seconds))
    return ReportTable(
        caption="pgbench transactions per second on the source while a contender loads the orders.",
        header=("concurrent load", "transactions / s", "relative rate", "seconds of the load"),
        rows=tuple(rows),
    )


def _resources(found: Figures) -> ReportTable:
    columns: tuple[Callable[[Sample], float], ...] = (
        lambda sample: sample.client_cpu_seconds,
        lambda sample: sample.source_cpu_seconds,
        lambda sample: sample.target_cpu_seconds,
    )
    rows = []
    for task in found.tasks:
        for contender in found.contenders:
            memory = found.median(task, contender, lambda sample: sample.peak_memory_bytes)
            if memory:
                cpu = [found.median(task, contender, column) or 0.0 for column in columns]
                rows.append((task, contender, *(f"{seconds:.2f}" for seconds in cpu), f"{memory / MEGABYTE:.0f}"))
    return ReportTable(
        caption="Processor seconds and peak memory: medians.",
        header=("task", "contender", "client", "source server", "target server", "client's peak MB"),
        rows=tuple(rows),
    )


def _spread(found: Figures, task: str, contender: str) -> str:
    median, spread = found.median(task, contender), found.spread(task, contender)
    if spread is None:
        return ""
    return WRONG if median is None else f"{median:.2f} ({spread[0]:.2f}-{spread[1]:.2f})"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _markdown(table: ReportTable) -> str:
    rule = tuple("---" if not place else "---:" for place in range(len(table.header)))
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.rows))


def list_faults(found: Sequence[Sample]) -> list[str]:
    """Return a line for each sample with a fault."""
    return [
        f"{sample.task}, turn {sample.turn + 1}: {sample.contender} is wrong: {sample.fault}"
        for sample in found
        if sample.fault
    ]


if __name__ == "__main__":
    sys.exit(main())
