"""Version 4: runs that several processes share, and what the earlier releases of version 3 lack."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Identity, Text, text
from sqlalchemy.dialects.postgresql import JSONB

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Add what version 4 has and some ledger of version 3 has not."""
    op.add_column("runs", Column("shared_by", Text), schema="etl", if_not_exists=True)
    column_numbers = Column("column_numbers", JSONB, nullable=False, server_default=text("'{}'"))
    op.add_column("watermarks", column_numbers, schema="etl", if_not_exists=True)
    op.add_column("watermarks", Column("next_xid", Text), schema="etl", if_not_exists=True)
    op.create_table(
        "schema_changes",
        Column("change_id", BigInteger, Identity(always=True), primary_key=True),
        Column("run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        Column("table_name", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("column_name", Text),
        Column("detail", Text, nullable=False),
        Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        schema="etl",
        if_not_exists=True,
    )
