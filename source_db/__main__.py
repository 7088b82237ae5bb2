"""`python -m source_db`: create, fill and exercise the example source."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import psycopg2

from etl.database_url import read_url
from etl.errors import ConfigurationError
from source_db import schema, seed, simulate

USAGE, UNAVAILABLE, FAILED = 2, 3, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 1 when refused, 2 for wrong usage, 3 when the database is unreachable."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    name = "SOURCE_ADMIN_DATABASE_URL" if os.environ.get("SOURCE_ADMIN_DATABASE_URL") else "SOURCE_DATABASE_URL"
    url = os.environ.get(name)
    if not url:  # not an argument, because every user of the machine can read those
        parser.error("expected the URL of a database, found none: set SOURCE_ADMIN_DATABASE_URL")
    try:
        read_url(url, name)
        _COMMANDS[arguments.command](url, arguments)
    except ConfigurationError as error:
        return _fail(str(error), USAGE)
    except schema.SourceDatabaseError as error:
        return _fail(str(error), FAILED)
    except psycopg2.OperationalError as error:
        return _fail(f"cannot reach the database: {' '.join(str(error).split())}", UNAVAILABLE)
    except psycopg2.Error as error:
        return _fail(f"the database refused: {' '.join(str(error).split())}", FAILED)
    return 0


def _schema(url: str, _: argparse.Namespace) -> None:
    schema.apply(url)
    print("schema created")


def _seed(url: str, arguments: argparse.Namespace) -> None:
    if not schema.is_applied(url):
        schema.apply(url)
    if arguments.if_empty and not seed.is_empty(url):
        print("the tables hold rows already: nothing to do")
        return
    counts = seed.load(url, scale=arguments.scale, seed=arguments.seed, on_progress=_show_progress)
    print(file=sys.stderr)
    _print_counts(counts)


def _simulate(url: str, arguments: argparse.Namespace) -> None:
    print(f"simulating {arguments.seconds:g} s at {arguments.rate:g} transactions a second", file=sys.stderr)
    counts = simulate.run(
        url, seconds=arguments.seconds, rate=arguments.rate, writers=arguments.writers, seed=arguments.seed
    )
    _print_counts(counts)


_COMMANDS = {"schema": _schema, "seed": _seed, "simulate": _simulate}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m source_db",
        description="The example e-commerce source.",
        epilog="SOURCE_ADMIN_DATABASE_URL names the database; without it, SOURCE_DATABASE_URL does.",
    )
    parser.add_argument("command", choices=_COMMANDS, help="create the tables, fill them, or simulate activity")
    parser.add_argument("--scale", type=_positive, default=1, help="seed: 1 is 20,000 orders (default: 1)")
    parser.add_argument("--seed", type=int, default=42, help="seed of all random numbers (default: 42)")
    parser.add_argument("--if-empty", action="store_true", help="seed: do nothing when a table holds rows")
    parser.add_argument("--seconds", type=_positive, default=20, help="simulate: duration in seconds (default: 20)")
    parser.add_argument("--rate", type=_positive, default=50, help="simulate: transactions a second (default: 50)")
    parser.add_argument(
        "--writers",
        type=int,
        choices=range(1, 65),
        default=4,
        metavar="N",
        help="simulate: sessions at a time (default: 4)",
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a number above 0")
    return value


def _show_progress(table: str, rows: int) -> None:
    if sys.stderr.isatty():
        print(f"\rseeding {table}: {rows:,} rows\x1b[K", end="", file=sys.stderr, flush=True)


def _print_counts(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        print(f"{name:18}{count:>12,}")


def _fail(message: str, code: int) -> int:
    print(f"source_db: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
