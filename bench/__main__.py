"""`python -m bench`: time this project and psql's COPY pipe in turn, as whole processes, and print the ratios.

The pipe goes binary into a table that has its key already, which is what people take for the limit. For the change of
1 % it copies into a temporary table and upserts once. Both work on embedded PostgreSQL 18 servers with fsync on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from etl.local.servers import Server, find_binaries, free_port

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "maintenance_work_mem": "256MB"}
FOLDER = Path(__file__).parent
RAW_TABLE = """
    create table piped (
        order_id bigint primary key, customer_id bigint, status text, total numeric(12, 2), attributes jsonb,
        note text, ordered_at timestamptz, updated_at timestamptz
    )
"""
COLUMNS = "order_id, customer_id, status::text, total, attributes, note, ordered_at, updated_at"
UPSERT = """
    insert into piped select * from changed
    on conflict (order_id) do update set (customer_id, status, total, attributes, note, ordered_at, updated_at) =
    (excluded.customer_id, excluded.status, excluded.total, excluded.attributes, excluded.note,
    excluded.ordered_at, excluded.updated_at)
"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The two servers and the databases of a measurement."""

    source: Server
    target: Server

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SOURCE_DATABASE_URL": self.source.url(),
            "TARGET_DATABASE_URL": self.target.url(),
            "ETL_TABLES": str(FOLDER / "tables.yml"),
        }

    @property
    def psql(self) -> str:
        return shlex.quote(str(find_binaries(18, self.source.folder.parent) / "bin" / "psql"))

    def execute(
        self, server: Server, statement: str | sql.Composable, parameters: dict[str, Any] | None = None
    ) -> None:
        connection = psycopg2.connect(server.url())
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
        finally:
            connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the table (default: 200,000)")
    parser.add_argument("--repeat", type=int, default=3, help="times each is measured (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="tidemark-bench-") as folder:
        Path(folder).chmod(0o755)
        servers = [
            Server(name=name, folder=Path(folder) / name, port=free_port(), major=18, settings=SETTINGS)
            for name in ("source", "target")
        ]
        try:
            for server in servers:
                server.start()
            figures = measure(Stage(source=servers[0], target=servers[1]), given.rows, given.repeat)
        finally:
            for server in servers:
                server.remove()
    print_figures(figures, given.rows)
    if given.json:
        given.json.write_text(json.dumps({"rows": given.rows, "seconds": figures}, indent=2) + "\n")
    return 0


def measure(stage: Stage, rows: int, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds by task and contender; the contenders take turns."""
    print(f"making {rows:,} rows ...", file=sys.stderr, flush=True)
    stage.execute(stage.source, (FOLDER / "orders.sql").read_text(), {"rows": rows})
    tasks = ("full load", "1 % changed", "nothing changed")
    figures: dict[str, dict[str, list[float]]] = {task: {"tidemark": [], "psql pipe": []} for task in tasks}
    for turn in range(repeat):
        print(f"turn {turn + 1} of {repeat} ...", file=sys.stderr, flush=True)
        stage.execute(stage.target, "drop schema if exists raw, etl cascade; drop table if exists piped")
        stage.execute(stage.target, RAW_TABLE)
        for task in tasks:
            since = f"timestamptz '2027-01-01' + {turn} * interval '1 day'"
            if task == "1 % changed":
                touched = sql.SQL("update orders set total = total + 1, updated_at = {} where order_id % 100 = 0")
                stage.execute(stage.source, touched.format(sql.SQL(since)))
            commands = {
                "tidemark": f"{shlex.quote(sys.executable)} -m etl run orders",
                "psql pipe": _pipe(stage, task, since),
            }
            for contender in sorted(commands, reverse=bool(turn % 2)):
                figures[task][contender].append(_time(commands[contender], stage.environment))
    return figures


def _pipe(stage: Stage, task: str, since: str) -> str:
    source = f'{stage.psql} "$SOURCE_DATABASE_URL" -qc'
    target = f'{stage.psql} "$TARGET_DATABASE_URL" -q'
    if task == "full load":
        read = f"copy (select {COLUMNS} from orders) to stdout with (format binary)"
        return f"{source} {shlex.quote(read)} | {target} -c 'copy piped from stdin with (format binary)'"
    later = since if task == "1 % changed" else "'infinity'::timestamptz"
    read = f"copy (select {COLUMNS} from orders where updated_at >= {later}) to stdout with (format binary)"
    steps = ("create temp table changed (like piped)", "copy changed from stdin with (format binary)", UPSERT)
    return f"{source} {shlex.quote(read)} | {target} " + " ".join(f"-c {shlex.quote(step)}" for step in steps)


def _time(command: str, environment: dict[str, str]) -> float:
    started = time.monotonic()
    # A shell joins the two psql of the pipe; every part of the command is quoted above.
    subprocess.run(command, shell=True, env=environment, check=True, capture_output=True)  # noqa: S602
    return time.monotonic() - started


def print_figures(figures: dict[str, dict[str, list[float]]], rows: int) -> None:
    """Print medians, and the ratio of the medians."""
    print(f"{rows:,} rows; medians of whole processes, in seconds")
    print(f"{'':18}{'tidemark':>10}{'psql pipe':>12}{'ratio':>8}")
    for task, seconds in figures.items():
        ours, theirs = statistics.median(seconds["tidemark"]), statistics.median(seconds["psql pipe"])
        print(f"{task:18}{ours:>10.2f}{theirs:>12.2f}{ours / theirs:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())
