"""Version 6: which source the rows of a raw table come from, refusals that stay, and what complete reads could see.

In an older ledger all of this is unknown; the next run of a table records it.
"""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Double, ForeignKey, Text, text
from sqlalchemy.types import TypeEngine

revision = "6"
down_revision = "5"

Columns = tuple[tuple[str, TypeEngine[Any]], ...]

SOURCE: Columns = (
    ("database_name", Text()),
    ("database_oid", BigInteger()),
    ("schema_name", Text()),
    ("timeline", BigInteger()),
)
NOTES: Columns = (
    ("refusal", Text()),
    ("read_xid", Text()),
    ("read_signature", Text()),
    ("changes_counted", BigInteger()),
    ("clock_ahead", Double()),
)


def upgrade() -> None:
    """Add what identifies a source, beside the identifier of its cluster, and what shows that a watermark lied."""
    for table in ("watermarks", "loads"):
        for name, kind in SOURCE:
            op.add_column(table, Column(name, kind), schema="etl", if_not_exists=True)
    for name, note in NOTES:
        op.add_column("watermarks", Column(name, note), schema="etl", if_not_exists=True)
    has_read = Column("has_read", Boolean, nullable=False, server_default=text("false"))
    op.add_column("watermarks", has_read, schema="etl", if_not_exists=True)
    op.create_table(
        "net_scans",
        Column("table_name", Text, primary_key=True),
        Column("first_block", BigInteger, primary_key=True),
        Column("end_block", BigInteger),
        Column("scan_xid", Text, nullable=False),
        Column("scan_signature", Text, nullable=False),
        Column("scanned_at", DateTime(timezone=True), nullable=False),
        Column("rows_found", BigInteger, nullable=False, server_default=text("0")),
        Column("found_at", DateTime(timezone=True)),
        Column("run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        schema="etl",
        if_not_exists=True,
    )
