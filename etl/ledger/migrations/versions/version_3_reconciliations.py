"""Version 3: what the source had counted when keys were last compared.

Four releases state version 3. Version 4 adds what the earlier ones of them lack.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Text

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Add what version 3 has and version 2 has not."""
    op.create_table(
        "reconciliations",
        Column("table_name", Text, primary_key=True),
        Column("rows_inserted", BigInteger, nullable=False),
        Column("rows_updated", BigInteger, nullable=False),
        Column("rows_deleted", BigInteger, nullable=False),
        Column("filenodes", Text, nullable=False),
        Column("stats_reset", Text, nullable=False),
        Column("server_started_at", DateTime(timezone=True), nullable=False),
        Column("listed_at", DateTime(timezone=True), nullable=False),
        Column("run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        schema="etl",
        if_not_exists=True,
    )
