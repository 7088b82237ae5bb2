"""The command line: arguments, progress, results and exit codes.

Exit codes: 0 every table succeeded (run) or is equal (verify); 1 a table failed or differs; 2 wrong usage or
configuration, or no table to replicate; 3 the command could not run, or a table could not be compared. Progress and
errors go to standard error, results to standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import etl
from etl.commands.discover import SCAN_UP_TO_MB, discover
from etl.commands.run import run
from etl.commands.scaffold import is_beyond_dbt, render_tables, write_staging
from etl.commands.status import TableStatus, describe_duration, describe_holder, find_source_error, read_status
from etl.commands.verify import verify
from etl.compare.verdict import Verdict, describe
from etl.config import Settings, load_settings, load_source_settings
from etl.display import LogFormat, choose_progress, print_aligned, result_record
from etl.errors import EtlError
from etl.model import ROW_VERSIONS, RunOptions
from etl.results import RunResult, TableResult
from etl.text import printable

MAX_DETAILED = 20  # tables that `discover` describes one by one unasked
INTERRUPTED = 130  # the exit code that shells report after SIGINT
WHERE = {
    "missing": "missing in raw",
    "extra": "in raw only",
    "changed": "different in raw",
    "rejected": "rejected by the target",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except EtlError as error:
        for line in str(error).splitlines():
            print(f"etl: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("etl: interrupted; committed work is kept, and the next run continues from there", file=sys.stderr)
        return INTERRUPTED


def execute_run(
    settings: Settings,
    table_names: Sequence[str] = (),
    *,
    log_format: LogFormat = "text",
    options: RunOptions | None = None,
) -> RunResult:
    """Replicate with progress on standard error. Raises EtlError as `etl.commands.run.run` does."""
    with choose_progress(log_format) as display:
        return run(settings, table_names, observe=display, options=options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="etl",
        description="Keep the raw schema of a warehouse in step with an OLTP Postgres.",
        epilog="SOURCE_DATABASE_URL and TARGET_DATABASE_URL name the databases; docs/configuration.md has the other "
        "settings.",
    )
    parser.add_argument("--version", action="version", version=f"tidemark {etl.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="replicate what changed", description="Replicate what changed.")
    run.add_argument("tables", nargs="*", metavar="TABLE", help="tables to replicate (default: all configured)")
    run.add_argument("--reconcile", action="store_true", help="look for deleted rows even where none were counted")
    run.add_argument("--full-refresh", action="store_true", help="reload the tables, as reset does")
    _add_run_options(run)
    run.set_defaults(command=_run)
    reset = commands.add_parser(
        "reset",
        help="reload tables",
        description="Reload tables. Readers of raw see the old rows until the reload is complete; rows deleted on the "
        "source become tombstones.",
    )
    reset.add_argument("tables", nargs="+", metavar="TABLE", help="tables to reload")
    _add_run_options(reset)
    reset.set_defaults(command=_run, full_refresh=True, reconcile=False)
    status = commands.add_parser(
        "status",
        help="show watermarks and what holds them back",
        description="Show the last run and the watermark of each table, and what holds the watermark back.",
    )
    status.add_argument("--json", action="store_true", help="print the status as JSON")
    status.set_defaults(command=_status)
    compare = commands.add_parser(
        "verify",
        help="compare source and raw by content",
        description="Compare source and raw by content. A run may be in progress: rows that the next run reads anyway "
        "are reported as pending, not as different. Rows that the target rejects differ.",
    )
    compare.add_argument("tables", nargs="*", metavar="TABLE", help="tables to compare (default: all configured)")
    compare.add_argument("--repair", action="store_true", help="repair rows that differ, then compare again")
    compare.add_argument(
        "--adopt-source",
        action="store_true",
        help="compare tables whose source is another one, or older, than at the last run, and let each table that is "
        "equal go on from it",
    )
    _add_output_options(compare)
    compare.set_defaults(command=_verify)
    look = commands.add_parser(
        "discover",
        help="propose a tables.yml for a source",
        description="Inspect a source and print a proposed tables.yml, with the reasons for each choice and statements "
        "that fix what is wrong. Needs only SOURCE_DATABASE_URL, and does not write to the source.",
    )
    look.add_argument("tables", nargs="*", metavar="TABLE", help="tables to inspect (default: all in the schema)")
    look.add_argument("--schema", default="public", help="schema of the source (default: public)")
    look.add_argument("--json", action="store_true", help="print the proposals as JSON instead of YAML")
    look.add_argument(
        "--details",
        action="store_true",
        help=f"describe each table apart; the default for up to {MAX_DETAILED} tables, of more those alike go together",
    )
    look.add_argument(
        "--scan-up-to",
        type=int,
        default=SCAN_UP_TO_MB,
        metavar="MB",
        help="propose `watermark: xmin` for tables up to this size, whatever columns they have (default: %(default)s)",
    )
    look.add_argument("--dbt", type=Path, metavar="FOLDER", help="also write dbt sources and staging models to FOLDER")
    look.set_defaults(command=_discover)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-deletes",
        action="store_true",
        help="accept that more rows were deleted than max_delete_fraction allows",
    )
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-format", choices=get_args(LogFormat), default="text", help="progress as text or JSON lines"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    options = RunOptions(
        allow_deletes=arguments.allow_deletes,
        reconcile=arguments.reconcile,
        full_refresh=arguments.full_refresh,
    )
    result = execute_run(load_settings(), arguments.tables, log_format=arguments.log_format, options=options)
    if arguments.json:
        tables = [result_record(table) for table in result.tables]
        print(json.dumps({"run_id": result.run_id, "seconds": round(result.seconds, 3), "tables": tables}))
    else:
        print(f"run {result.run_id}: {_count_tables(result.tables)} in {result.seconds:.1f} s")
    return 1 if result.has_failures else 0


def _count_tables(tables: Sequence[TableResult]) -> str:
    failed = sum(table.status != "succeeded" for table in tables)
    idle = sum(table.is_idle for table in tables)
    outcome = f"{failed} of {len(tables)} tables failed" if failed else f"{len(tables)} tables"
    return f"{outcome}, {idle} without changes" if idle else outcome


def _status(arguments: argparse.Namespace) -> int:
    tables = read_status(load_settings())
    source_error = find_source_error(tables)
    if source_error:
        print(f"etl: lag, age of scans and holders are unknown: {printable(source_error)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(table) for table in tables], default=str))
        return 3 if source_error else 0
    header = ("table", "last run", "ended at", "watermark", "net scan", "found", "lag", "rejected", "held back by")
    print_aligned(header, [_status_row(table) for table in tables])
    for table in tables:
        if table.error and _has_failed(table):
            print(printable(f"{table.table_name}: {table.error}"))
        elif table.refusal:
            print(printable(f"{table.table_name}: the next run refuses it: {table.refusal}"))
        if table.source_change:
            print(printable(f"{table.table_name}: {table.source_change}"))
    return 3 if source_error else 0


def _status_row(table: TableStatus) -> tuple[str, ...]:
    unknown = "unknown" if table.source_error else ""
    return (
        table.table_name,
        table.status,
        f"{table.ended_at:%Y-%m-%d %H:%M:%S}" if table.ended_at else "",
        f"{table.watermark_column} >= {table.watermark}" if table.watermark else ROW_VERSIONS,
        describe_duration(table.scan_age_seconds) or unknown,
        f"{table.rows_found:,}" if table.rows_found else "",
        describe_duration(table.lag_seconds) or unknown,
        f"{table.rejected_rows:,}" if table.rejected_rows else "",
        "; ".join(map(describe_holder, table.holders)) or unknown,
    )


def _has_failed(table: TableStatus) -> bool:
    return table.status in ("failed", "died")


def _verify(arguments: argparse.Namespace) -> int:
    with choose_progress(arguments.log_format) as display:
        verdicts = verify(
            load_settings(),
            arguments.tables,
            observe=display,
            is_repair=arguments.repair,
            is_adoption=arguments.adopt_source,
        )
    if arguments.json:
        print(json.dumps([{**dataclasses.asdict(found), "is_equal": found.is_equal} for found in verdicts]))
    else:
        _print_verdicts(verdicts)
    if any(verdict.error for verdict in verdicts):
        return 3
    return 0 if all(verdict.is_equal for verdict in verdicts) else 1


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    rows = [(found.table_name, f"{found.source_rows:,}", f"{found.raw_rows:,}", describe(found)) for found in verdicts]
    print_aligned(("table", "source rows", "raw rows", "verdict"), rows)
    for found in verdicts:
        for example in found.examples:
            key = ", ".join(f"{name} = {value}" for name, value in example.key.items())
            columns = f": {', '.join(example.columns)}" if example.columns else ""
            print(printable(f"{found.table_name}: {key} is {WHERE[example.kind]}{columns}"))


def _discover(arguments: argparse.Namespace) -> int:
    settings = load_source_settings(schema=arguments.schema)
    proposals = discover(settings, arguments.tables, scan_up_to_mb=arguments.scan_up_to)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(proposal) for proposal in proposals]))
    else:
        is_detailed = arguments.details or len(proposals) <= MAX_DETAILED
        print(render_tables(proposals, settings, is_detailed=is_detailed), end="")
    if arguments.dbt:
        for path in write_staging(arguments.dbt, proposals):
            print(printable(f"wrote {path}"), file=sys.stderr)
        for proposal in proposals:
            if is_beyond_dbt(proposal.name):
                print(
                    f"{proposal.name!r} has no model: dbt cannot name it safely; create a view on it", file=sys.stderr
                )
    return 0


def _interrupt(_signal: int, _frame: FrameType | Any) -> None:
    raise KeyboardInterrupt
