"""Version 6: which source the rows of a raw table come from, and refusals that stay until a person settles them.

In an older ledger all of this is unknown; the next run of a table records it.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Add what identifies a source, beside the identifier of its cluster."""
    for table in ("watermarks", "loads"):
        for name, kind in (
            ("database_name", Text()),
            ("database_oid", BigInteger()),
            ("schema_name", Text()),
            ("timeline", BigInteger()),
        ):
            op.add_column(table, Column(name, kind), schema="etl", if_not_exists=True)
    op.add_column("watermarks", Column("refusal", Text), schema="etl", if_not_exists=True)
