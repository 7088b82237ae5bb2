"""The summary that ends `make pipeline`: rows replicated, rows in each mart, and how to query them."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg2
from psycopg2 import sql

from deploy.local.databases import Databases
from etl.display import print_aligned
from etl.results import RunResult

QUERY = "select order_date, count(*), sum(total_usd) from marts.fct_orders group by 1 order by 1 desc limit 7"


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How many seconds each stage took."""

    replicate: float
    build: float


def print_summary(databases: Databases, result: RunResult, timings: Timings) -> None:
    """Print the summary to standard output."""
    header = ("table", "read", "inserted", "updated", "deleted", "seconds")
    rows = [
        (
            table.table_name,
            *(f"{n:,}" for n in (table.rows_read, table.rows_inserted, table.rows_updated, table.rows_deleted)),
            f"{table.seconds:.1f}",
        )
        for table in result.tables
    ]
    print(f"\nRun {result.run_id}: source to raw in {timings.replicate:.1f} s")
    print_aligned(header, rows, numbers_from=1)
    url = databases.environment.get("TRANSFORMER_DATABASE_URL") or databases.urls["TARGET_DATABASE_URL"]
    print_marts(url, timings.build)
    print(f"\nQuery them:\n  {_query_line(databases)}")


def print_marts(url: str, seconds: float) -> None:
    """Print how many seconds the models took, and the number of rows in each mart."""
    print(f"\nMarts: built and tested in {seconds:.1f} s")
    print_aligned(("mart", "rows"), [(name, f"{rows:,}") for name, rows in count_marts(url)], numbers_from=1)


def count_marts(url: str) -> list[tuple[str, int]]:
    """Return each table of schema marts with its number of rows."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select tablename from pg_catalog.pg_tables where schemaname = 'marts' order by 1")
            names = [row[0] for row in cursor.fetchall()]
            counts = []
            for name in names:
                cursor.execute(sql.SQL("select count(*) from marts.{}").format(sql.Identifier(name)))
                row = cursor.fetchone()
                counts.append((f"marts.{name}", row[0] if row else 0))
            return counts
    finally:
        connection.close()


def _query_line(databases: Databases) -> str:
    program = "make psql ARGS='-c" if databases.is_target_embedded else 'psql "$TARGET_DATABASE_URL" -c'
    return f'{program} "{QUERY}"' + ("'" if databases.is_target_embedded else "")
