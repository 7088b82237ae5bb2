"""Defines the tables of the ledger, whole, and composes their DDL. No I/O.

`etl.ledger.migrations` adds what older ledgers lack; the comments in the target are always those of this module.
`etl.ledger.describe` writes docs/ledger.md and creation.sql from it. The statements of a run do not use it, because
SQLAlchemy takes as long to import as all else that a run imports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement, SetColumnComment, SetTableComment
from sqlalchemy.sql.schema import SchemaItem

SCHEMA = "etl"
# Constraints have the names that Postgres gives them; ledgers of versions 1 to 4 have them from there.
METADATA = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    },
)
DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
CREATE_SCHEMAS = f"create schema if not exists raw;\ncreate schema if not exists {SCHEMA};\n"
NOW = text("clock_timestamp()")
NONE_YET = text("0")
STATUSES = "status in ('running', 'succeeded', 'failed', 'died')"


def _key(name: str, comment: str, *more: SchemaItem) -> Column[Any]:
    return Column(name, BigInteger if more else Text, *more, primary_key=True, comment=comment)


def _run_id(comment: str, name: str = "run_id") -> Column[Any]:
    return Column(name, BigInteger, ForeignKey("etl.runs.run_id"), nullable=False, comment=comment)


def _text(name: str, comment: str, *, is_nullable: bool = False) -> Column[Any]:
    return Column(name, Text, nullable=is_nullable, comment=comment)


def _number(name: str, comment: str, *, is_nullable: bool = False) -> Column[Any]:
    return Column(name, BigInteger, nullable=is_nullable, comment=comment)


def _count(name: str, comment: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, server_default=NONE_YET, comment=comment)


def _json(name: str, comment: str, default: str) -> Column[Any]:
    return Column(name, JSONB, nullable=False, server_default=text(f"'{default}'"), comment=comment)


def _instant(name: str, comment: str, *, is_nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=is_nullable, comment=comment)


def _now(name: str, comment: str) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=NOW, comment=comment)


def _source() -> tuple[Column[Any], ...]:
    """Return the columns that identify a source, beside `system_identifier`; NULL: written before version 6."""
    return (
        _text("database_name", "The source's database.", is_nullable=True),
        _number("database_oid", "Its oid; unlike the name, it stays when the database is renamed.", is_nullable=True),
        _text("schema_name", "The schema of the source.", is_nullable=True),
        _number("timeline", "The timeline of the source; it grows with a promotion or a recovery.", is_nullable=True),
    )


def _mark(name: str, what: str, *, is_nullable: bool = False) -> tuple[Column[Any], ...]:
    """Return the columns of a mark: what a complete read could see."""
    xid = f"{what}: row versions that it could not see have this xid8 or a later one."
    signature = f"{what}: the source, files and columns that were read, and how, as JSON."
    return (
        _text(f"{name}_xid", xid, is_nullable=is_nullable),
        _text(f"{name}_signature", signature, is_nullable=is_nullable),
    )


def _status(comment: str) -> Column[Any]:
    return Column("status", Text, nullable=False, server_default=text("'running'"), comment=comment)


RUNS = Table(
    "runs",
    METADATA,
    _key("run_id", "Grows with every run.", Identity(always=True)),
    _now("started_at", "When the run began, by the target's clock."),
    _instant("ended_at", "When it ended; NULL while it is running.", is_nullable=True),
    _status("running, succeeded, failed, or died: the run vanished, and the next one marked it."),
    _text("error", "Why it failed or died.", is_nullable=True),
    _text("shared_by", "What several processes work in this run for; NULL: one process does.", is_nullable=True),
    CheckConstraint(STATUSES, name="runs_status_check"),
    CheckConstraint("(ended_at is null) = (status = 'running')", name="runs_check"),
    comment="One row per run; runs are serial, ids are allotted under the run lock.",
)
Table(
    "table_runs",
    METADATA,
    _key("run_id", "The run.", ForeignKey("etl.runs.run_id")),
    _key("table_name", "The table of the source."),
    _now("started_at", "When the run first began with the table."),
    _instant("ended_at", "When it ended; NULL while it is running.", is_nullable=True),
    _status("running, succeeded, failed, or died: the run vanished, and the next one marked it."),
    _text("snapshot", "The exported snapshot of the source that the last attempt read.", is_nullable=True),
    _text("watermark_before", "The watermark from which the first attempt read.", is_nullable=True),
    _text("watermark_after", "The watermark that the run stored; NULL unless it succeeded.", is_nullable=True),
    Column(
        "fence_wait_seconds",
        Double,
        nullable=False,
        server_default=NONE_YET,
        comment="How long all attempts waited for open transactions of the source.",
    ),
    _count("batches", "Committed transactions with rows of the table."),
    _count("rows_read", "Rows that the source sent."),
    _count("rows_inserted", "Rows that raw did not have, or had as tombstones."),
    _count("rows_updated", "Rows that differed."),
    _count("rows_rejected", "Rows that the target refused."),
    _count("rows_deleted", "Rows that became tombstones."),
    _count("bytes_read", "Bytes of COPY that the source sent."),
    _count("retries", "How often the table was tried again after an error; error has the last."),
    _text("error", "The last error, also of a table that succeeded when it was tried again.", is_nullable=True),
    Column(
        "rows_unchanged",
        BigInteger,
        Computed("rows_read - rows_inserted - rows_updated - rows_rejected", persisted=True),
        comment="Rows that were read and equal those of raw.",
    ),
    CheckConstraint(STATUSES, name="table_runs_status_check"),
    comment="One row per table of a run; counts grow in the transactions of the batches.",
)
Table(
    "watermarks",
    METADATA,
    _key("table_name", "The table of the source."),
    _text("column_name", "The watermark column; NULL: each run reads the row versions that are new.", is_nullable=True),
    _text("watermark", "NULL: nothing has settled yet, the next run reads the whole table.", is_nullable=True),
    _json("points", "Points taken, oldest first, that were not settled when the run ended.", "[]"),
    _text("system_identifier", "The identifier of the source cluster.", is_nullable=True),
    _run_id("The last run that stored the row."),
    _now("changed_at", "When it was stored."),
    _instant("as_of", "The source's clock, less the margin, when the watermark's point was taken.", is_nullable=True),
    _json("raw_types", "The type in raw of each column of the source, as last replicated.", "{}"),
    _json("column_numbers", "The attnum of each column of the source, as last replicated.", "{}"),
    _text(
        "next_xid", "How far the source's transactions had come (xid8): an older source is refused.", is_nullable=True
    ),
    *_source(),
    _text("refusal", "Why the table is refused until a person settles it; NULL: it is not.", is_nullable=True),
    *_mark("read", "The last complete read, by watermark or whole", is_nullable=True),
    _number(
        "changes_counted",
        "How many rows the source had counted as inserted or updated, as far as what runs read explains it.",
        is_nullable=True,
    ),
    Column(
        "has_read",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="Whether the last run read rows of the table, by its watermark.",
    ),
    Column("clock_ahead", Double, comment="By how many seconds the source's clock was ahead of the target's."),
    comment="From where the next read of a table starts, inclusive.",
)
Table(
    "loads",
    METADATA,
    _key("table_name", "The table of the source."),
    _text("filenodes", "The table's files on the source; after TRUNCATE or a rewrite the load starts over."),
    _text("signature", "The columns and the key, as JSON; after a change of them the load starts over."),
    _text("system_identifier", "The identifier of the source cluster; on another one the load starts over."),
    _number("next_block", "The block of the source where the next range starts; NULL: all are read.", is_nullable=True),
    _text("oldest_xid", "Row versions written since the first snapshot have this xid8 or a later one."),
    _run_id("The last run that stored the row."),
    _now("changed_at", "When it was stored."),
    *_source(),
    comment="First loads in ranges that are not done yet: how far they have come.",
)
Table(
    "rejected_rows",
    METADATA,
    _key("table_name", "The table of the source."),
    _key("key", "The values of the primary key, a JSON array of text."),
    _text("row_text", "The row in COPY text format; what is not ASCII is escaped."),
    _text("sqlstate", "The SQLSTATE of the error."),
    _text("message", "What the target answered; what is not ASCII is escaped."),
    _run_id("The last run that tried the row."),
    _run_id("The run that met it first.", "first_run_id"),
    _now("rejected_at", "When it was last tried."),
    comment="Rows that the target refuses at present; each run tries them again.",
)
Table(
    "reconciliations",
    METADATA,
    _key("table_name", "The table of the source."),
    _number("rows_inserted", "Rows that the source's statistics count as inserted, in all partitions."),
    _number("rows_updated", "Rows that they count as updated."),
    _number("rows_deleted", "Rows that they count as deleted."),
    _text("filenodes", "The table's files on the source; TRUNCATE and rewrites change them."),
    _text("stats_reset", "When the source's statistics were last reset, also by a crash."),
    _instant("server_started_at", "When the source's server was started."),
    _instant("listed_at", "When the counts were read, by the source's clock."),
    _run_id("The run that compared the keys."),
    comment="What the source had counted of a table when its keys were last known to equal those of raw.",
)
Table(
    "net_scans",
    METADATA,
    _key("table_name", "The table of the source."),
    Column("first_block", BigInteger, primary_key=True, comment="The first block of the slice, in each partition."),
    _number("end_block", "The block before which the slice ends; NULL: it has no end.", is_nullable=True),
    *_mark("scan", "The last scan"),
    _instant("scanned_at", "When it began, by the source's clock."),
    _count("rows_found", "Rows that scans of the slice found and the watermark column had not shown."),
    _instant("found_at", "When a scan last found some, by the source's clock.", is_nullable=True),
    _run_id("The last run that scanned the slice."),
    comment="Slices of tables, and the last net scan of each: every row version that it could see is in raw.",
)
Table(
    "schema_changes",
    METADATA,
    _key("change_id", "Grows with every change that is recorded.", Identity(always=True)),
    _run_id("The run that followed the change."),
    _text("table_name", "The table of the source."),
    _text("kind", "Such as column_added, column_widened, table_loaded or table_missing."),
    _text("column_name", "The column; NULL: the change is of the whole table.", is_nullable=True),
    _text("detail", "What changed, for people."),
    _now("changed_at", "When it was followed."),
    comment="What changed in the source's tables, with the run that followed it.",
)


def compose_creation() -> str:
    """Return the statements that create the schemas and the tables, without comments."""
    tables = METADATA.sorted_tables
    indexes = [CreateIndex(index) for table in tables for index in table.indexes]
    return CREATE_SCHEMAS + _compose([*map(CreateTable, tables), *indexes])


def compose_comments(statement_of_version: str) -> str:
    """Return the statements that write the comment of every table and column.

    The last one is the comment on `etl.runs`, which begins with `statement_of_version`.
    """
    tables = [table for table in METADATA.sorted_tables if table is not RUNS]
    columns = [column for table in METADATA.sorted_tables for column in table.columns]
    stated = RUNS.to_metadata(MetaData())
    stated.comment = f"{statement_of_version} {RUNS.comment}"
    return _compose([*map(SetTableComment, tables), *map(SetColumnComment, columns), SetTableComment(stated)])


def _compose(statements: Iterable[ExecutableDDLElement]) -> str:
    return "".join(f"{str(statement.compile(dialect=DIALECT)).strip()};\n" for statement in statements)
