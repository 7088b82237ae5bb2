"""Writes what follows from the tables of the ledger: `python -m etl.ledger.describe docs/ledger.md`.

That is the page about them, and `creation.sql`, which creates a new ledger without an import of SQLAlchemy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import CheckConstraint, Column, Computed, DefaultClause, Table

from etl.ledger import tables
from etl.ledger.tables import DIALECT, METADATA, SCHEMA
from etl.ledger.versions import VERSION

TITLE = f"""\
# The ledger

Schema `{SCHEMA}` of the target holds what Tidemark remembers between runs.
This is its version {VERSION}, which the comment on `{SCHEMA}.runs` states:

```sql
select obj_description('{SCHEMA}.runs'::regclass);
```

Read it freely, and write nothing to it.
A run of a newer release migrates an older ledger ([operations.md](operations.md#upgrade)); a release refuses a ledger \
that is newer than it knows.

<!-- Written by `python -m etl.ledger.describe docs/ledger.md` from etl/ledger/tables.py. -->
"""


CREATION = Path(__file__).with_name("creation.sql")


def compose_creation() -> str:
    """Return the statements that create a new ledger of this version, with its comments."""
    return tables.compose_creation() + tables.compose_comments(f"Ledger version {VERSION}.")


def describe() -> str:
    """Return the page, as Markdown."""
    return "\n".join([TITLE, *(line for table in METADATA.tables.values() for line in _describe_table(table))])


def _describe_table(table: Table) -> Iterator[str]:
    yield f"## {table.name}\n"
    yield f"{table.comment}\n"
    yield "| column | type | rules | meaning |"
    yield "|---|---|---|---|"
    for column in table.columns:
        yield f"| `{column.name}` | {_type(column)} | {_rules(column)} | {column.comment} |"
    yield ""
    yield f"- Primary key: {', '.join(f'`{column.name}`' for column in table.primary_key)}"
    yield from (f"- Check: `{check}`" for check in sorted(_checks(table)))
    yield ""


def _type(column: Column[object]) -> str:
    return str(column.type.compile(dialect=DIALECT)).lower()


def _rules(column: Column[object]) -> str:
    """Return what the column may hold and what it gets without a value."""
    rules = [] if column.nullable else ["not null"]
    if column.identity is not None:
        rules.append("identity")
    if isinstance(column.server_default, Computed):
        rules.append(f"computed: `{column.server_default.sqltext}`")
    elif isinstance(column.server_default, DefaultClause):
        rules.append(f"default `{column.server_default.arg}`")
    rules += [f"refers to [{key.column.table.name}](#{key.column.table.name})" for key in column.foreign_keys]
    return ", ".join(rules)


def _checks(table: Table) -> list[str]:
    return [str(check.sqltext) for check in table.constraints if isinstance(check, CheckConstraint)]


def main(path: str) -> None:
    """Write the page to a file, and `creation.sql`."""
    Path(path).write_text(describe(), encoding="utf-8")
    CREATION.write_text(compose_creation(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
