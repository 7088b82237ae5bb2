"""Composes the statements that lead from an older version of the ledger to a newer one, from Alembic's revisions.

Alembic writes the statements and does not run them: they run in the session that holds the locks, in one transaction.
The comment on `etl.runs` states the version, so Alembic keeps no table of its own.
"""

from __future__ import annotations

import io
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

FOLDER = Path(__file__).parent
FIRST_VERSION = 1  # what the first revision starts from


def compose(version: int, target: int) -> str:
    """Return the statements that lead from one version to another. Reads the revisions, and no database."""
    written = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        opts={"as_sql": True, "output_buffer": written},
    )
    start = "base" if version == FIRST_VERSION else str(version)
    with Operations.context(context):
        for revision in reversed(list(ScriptDirectory(FOLDER).iterate_revisions(str(target), start))):
            revision.module.upgrade()
    return written.getvalue()
