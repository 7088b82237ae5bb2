"""`python -m bench.marts`: compare an incremental build of each fact with its full refresh, in one run.

Each turn changes orders at the source, replicates them and builds all other models. Then it builds the facts three
times: with the changes, with nothing changed, and with a full refresh. The seconds are those that dbt reports for each
model, built one at a time. Servers are embedded PostgreSQL 18, with fsync on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.stage import Stage, execute, open_stage
from deploy.local.servers import HOST, SUPERUSER
from source_db import schema, seed

PROJECT = Path(__file__).parents[1] / "dbt"
FACTS = "path:models/marts/facts"
# Stock has a row per day: pretend that the first build was 90 days ago.
AGE_STOCK = "update snapshots.snap_inventory_levels set dbt_valid_from = dbt_valid_from - interval '90 days'"
TASKS = ("1 % changed", "nothing changed", "full refresh")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.marts", description=__doc__)
    parser.add_argument("--scale", type=float, default=20, help="size of the shop; 1 is 20,000 orders (default: 20)")
    parser.add_argument("--repeat", type=int, default=5, help="number of turns (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    with open_stage() as stage:
        figures = Warehouse(stage).measure(given.scale, given.repeat)
    print_figures(figures, given.scale)
    if given.json:
        given.json.write_text(json.dumps({"scale": given.scale, "seconds": figures}, indent=2) + "\n")
    return 0


class Warehouse:
    """A shop, its warehouse, and dbt on it."""

    def __init__(self, stage: Stage) -> None:
        self._source, self._target, self._folder = stage.source, stage.target, stage.folder
        self._environment = {
            **stage.urls("postgres", "postgres"),
            "DBT_HOST": HOST,
            "DBT_PORT": str(stage.target.port),
            "DBT_USER": SUPERUSER,
            "DBT_ENV_SECRET_PASSWORD": stage.target.password(),
            "DBT_DBNAME": "postgres",
        }

    def measure(self, scale: float, repeat: int) -> dict[str, dict[str, list[float]]]:
        """Return the seconds of each turn, by fact and task."""
        _say(f"filling the shop, scale {scale:g} ...")
        schema.apply(self._source.url())
        seed.load(self._source.url(), scale=scale)
        self._replicate()
        self._build("--select", "resource_type:snapshot")
        execute(self._target.url(), AGE_STOCK)
        self._build()
        figures: dict[str, dict[str, list[float]]] = {}
        for turn in range(repeat):
            _say(f"turn {turn + 1} of {repeat} ...")
            self._change(turn)
            self._replicate()
            self._build("--exclude", FACTS)
            for task in TASKS:
                full = ("--full-refresh",) if task == "full refresh" else ()
                for fact, seconds in self._build("--select", FACTS, *full).items():
                    figures.setdefault(fact, {name: [] for name in TASKS})[task].append(seconds)
        return figures

    def _change(self, turn: int) -> None:
        """Change every hundredth order, with its lines and payments, and the stock of every hundredth product."""
        execute(
            self._source.url(),
            f"update orders set channel = 'store' where order_id % 100 = {turn:d}",
            f"update order_items set quantity = quantity where order_id % 100 = {turn:d}",
            f"update payments set method = 'gift_card' where order_id % 100 = {turn:d}",
            f"update inventory_levels set on_hand = on_hand + 1 where product_id % 100 = {turn:d}",
        )

    def _replicate(self) -> None:
        self._run([sys.executable, "-m", "etl", "run"])

    def _build(self, *arguments: str) -> dict[str, float]:
        """Build without tests; return the seconds of each fact."""
        without_tests = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
        folders = ("--project-dir", PROJECT, "--profiles-dir", PROJECT, "--target-path", self._folder / "dbt")
        dbt = (sys.executable, "-c", "import sys; from dbt.cli.main import cli; sys.exit(cli())")
        self._run([*dbt, "build", *without_tests, *folders, "--threads", "1", "--log-path", self._folder, *arguments])
        results = json.loads((self._folder / "dbt" / "run_results.json").read_text())["results"]
        seconds = {str(result["unique_id"]).split(".")[-1]: float(result["execution_time"]) for result in results}
        return {name: seconds[name] for name in sorted(seconds) if name.startswith("fct_")}

    def _run(self, command: Sequence[str | Path]) -> None:
        finished = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{finished.stdout}\n{finished.stderr}")


def print_figures(figures: dict[str, dict[str, list[float]]], scale: float) -> None:
    """Print medians, and the time of an incremental build as a fraction of a full refresh."""
    print(f"scale {scale:g}; medians in seconds")
    print(f"{'':22}" + "".join(f"{task:>17}" for task in TASKS) + f"{'1 % / full':>12}")
    for fact, seconds in figures.items():
        medians = [statistics.median(seconds[task]) for task in TASKS]
        columns = "".join(f"{median:>17.2f}" for median in medians)
        print(f"{fact:22}{columns}{medians[0] / medians[2]:>12.2f}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
