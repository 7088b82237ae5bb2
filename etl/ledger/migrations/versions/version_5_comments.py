"""Version 5: every column has a comment, and releases refuse a ledger that is newer than they are."""

from __future__ import annotations

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Change nothing: after the last revision, the comments are written from `etl.ledger.tables`."""
