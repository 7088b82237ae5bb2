"""The tables of the ledger are described, their page is current, and their versions are a straight line."""

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from etl.ledger import tables
from etl.ledger.describe import CREATION, compose_creation, describe
from etl.ledger.migrations import composition
from etl.ledger.versions import VERSION

PAGE = Path(__file__).parents[3] / "docs" / "ledger.md"


def test_ledger_page_is_current():
    """If not: python -m etl.ledger.describe docs/ledger.md."""
    assert PAGE.read_text(encoding="utf-8") == describe()


def test_statements_of_a_new_ledger_are_current():
    """If not: python -m etl.ledger.describe docs/ledger.md."""
    assert CREATION.read_text(encoding="utf-8") == compose_creation()


def test_every_ledger_table_and_column_is_described():
    found = list(tables.METADATA.tables.values())

    assert len(found) == 8
    assert [table.name for table in found if not table.comment] == []
    assert [str(column) for table in found for column in table.columns if not column.comment] == []


def test_each_version_has_a_revision_that_leads_to_it():
    found = ScriptDirectory(composition.FOLDER).walk_revisions()

    assert [revision.revision for revision in found] == [
        str(version) for version in range(VERSION, composition.FIRST_VERSION, -1)
    ]


@pytest.mark.parametrize("version", range(1, VERSION))
def test_migration_starts_after_the_current_version(version):
    found = composition.compose(version, VERSION)

    assert ("etl.rejected_rows" in found, "etl.reconciliations" in found, "shared_by" in found) == (
        version < 2,
        version < 3,
        version < 4,
    )


def test_statements_contain_no_percent_sign_or_backslash():
    """Per cent signs begin parameters, and a backslash means what standard_conforming_strings says."""
    found = tables.compose_creation() + tables.compose_comments("Ledger version 0.")

    assert len(found) > 5000
    assert set("%\\") & set(found) == set()
