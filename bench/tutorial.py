"""`python -m bench.tutorial TABLE ...`: the loader that a tutorial teaches, for comparison.

It reads rows above `max(updated_at)` through a server-side cursor with `fetchmany`, and upserts them with
`execute_values` into existing tables. The code is as careful as a good tutorial's; its limits are those of the method:
rows pass through Python, rows that commit late are lost, and deletes are not seen.
"""

from __future__ import annotations

import os
import sys

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, execute_values

BATCH_ROWS = 10_000


def main() -> int:
    psycopg2.extensions.register_adapter(dict, Json)
    source = psycopg2.connect(os.environ["SOURCE_DATABASE_URL"])
    target = psycopg2.connect(os.environ["TARGET_DATABASE_URL"])
    for name in sys.argv[1:]:
        load(source, target, name)
    source.close()
    target.close()
    return 0


def load(source: Connection, target: Connection, name: str) -> None:
    """Bring one table up to date, and commit."""
    table = sql.Identifier(name)
    with target.cursor() as writing, source.cursor(name="reading") as reading:
        writing.execute(sql.SQL("select max(updated_at) from {}").format(table))
        row = writing.fetchone()
        watermark = row[0] if row else None
        if watermark is None:
            reading.execute(sql.SQL("select * from {}").format(table))
        else:
            reading.execute(sql.SQL("select * from {} where updated_at > %s").format(table), (watermark,))
        upsert = None
        while rows := reading.fetchmany(BATCH_ROWS):
            if upsert is None:
                upsert = compose_upsert(table, [column.name for column in reading.description or ()])
            execute_values(writing, upsert, rows, page_size=BATCH_ROWS)
    source.commit()
    target.commit()


def compose_upsert(table: sql.Identifier, columns: list[str]) -> sql.Composable:
    """Compose the upsert of rows whose first column is the key."""
    names = [sql.Identifier(column) for column in columns]
    return sql.SQL("insert into {} ({}) values %s on conflict ({}) do update set {}").format(
        table,
        sql.SQL(", ").join(names),
        names[0],
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in names[1:]),
    )


if __name__ == "__main__":
    sys.exit(main())
