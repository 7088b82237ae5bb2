"""`python -m bench`: time this project against psql's COPY pipes and a tutorial's loader, on the same data and servers.

All are measured as whole processes in one run and take turns; every other turn reverses their order. Afterwards each
copy is compared with its source, and one that differs is reported as wrong. docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import figures, report
from bench.contenders import CONTENDERS
from bench.copies import Copies
from bench.data import Sources
from bench.figures import Figures
from bench.measures import CHECKOUT
from bench.stage import QUIET_SETTINGS, Stage, fetch, open_stage
from bench.tasks import DEFAULT_TASKS, TASKS, Bench, run

LEAST_ROWS = 1000  # so that 0.1 % of them is one row
GIGABYTE = 1_000_000_000


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    load_before = os.getloadavg()[0]
    for package in ("etl", "bench"):  # if Python cannot write bytecode, each start would compile again
        compileall.compile_dir(CHECKOUT / package, quiet=1)
    with open_stage(QUIET_SETTINGS) as stage:
        copies = Copies(stage, Sources(stage, given.rows, _say), given.contenders, _say)
        bench = Bench(copies=copies, load_seconds=given.load_seconds)
        machine = describe_machine(stage, load_before)
        samples = []
        for sample in run(bench, given.tasks, given.repeat, _say):
            samples.append(sample)
            found = Figures(rows=given.rows, repeat=given.repeat, machine=machine, samples=samples)
            if given.json:
                figures.write(found, given.json)  # after each sample, so that an interrupted run keeps its figures
    print("\n\n".join(map(report.align, report.tables(found))))
    faults = report.list_faults(samples)
    print("\n".join(["", *faults]) if faults else "", end="\n" if faults else "")
    return 1 if faults else 0


def describe_machine(stage: Stage, load_before: float) -> dict[str, Any]:
    """Describe the machine of the figures, with its load before: figures from a busy machine are useless."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    version = fetch(stage.target.url(), "show server_version")[0][0]
    return {
        "PostgreSQL": version,
        "Python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory": f"{memory / GIGABYTE:.0f} GB",
        "load average before": round(load_before, 2),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="tasks:\n"
        + "\n".join(f"  {name:16}{text}" for name, (text, _) in TASKS.items())
        + "\n\nProgress goes to standard error, tables to standard output. Exit code 1 means that a copy was wrong.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=_rows, default=200_000, help="rows of orders (default: 200,000); other tables scale with it"
    )
    parser.add_argument("--repeat", type=_count, default=3, help="number of turns (default: 3)")
    parser.add_argument(
        "--tasks",
        type=_choice_of(list(TASKS)),
        default=list(DEFAULT_TASKS),
        metavar="TASK,...",
        help="what to measure, or `all` (default: all but pipeline)",
    )
    parser.add_argument(
        "--contenders",
        type=_choice_of(list(CONTENDERS)),
        default=list(CONTENDERS),
        metavar="NAME,...",
        help=f"what to compare: {', '.join(CONTENDERS)} (default: all)",
    )
    parser.add_argument(
        "--load-seconds", type=float, default=10.0, help="how long to measure pgbench without a load (default: 10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    return parser


def _choice_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(known) if text == "all" else text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {name!r}")
        return [name for name in known if name in names]

    return parse


def _rows(text: str) -> int:
    rows = int(text.replace(",", "").replace("_", ""))
    if rows < LEAST_ROWS:
        raise argparse.ArgumentTypeError(f"expected {LEAST_ROWS:,} rows or more, found {text}")
    return rows


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return count


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
