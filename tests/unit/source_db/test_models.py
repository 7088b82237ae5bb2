"""The models describe everything they declare, and the modules that do without SQLAlchemy agree with them."""

import subprocess
import sys

import pytest
from sqlalchemy import CheckConstraint, ForeignKeyConstraint

from source_db import models, schema, seed

TABLES = models.metadata.tables
WITHOUT_SQLALCHEMY = ("source_db.__main__", "source_db.seed", "source_db.simulate", "deploy.local.provision", "etl.cli")


def test_every_table_column_and_type_is_described():
    described = {
        **{name: table.comment for name, table in TABLES.items()},
        **{str(column): column.comment for table in TABLES.values() for column in table.columns},
        **{name: kind.__doc__ for kind, name in models.ENUM_TYPES.items()},
    }

    assert len(described) > 80
    assert [name for name, text in described.items() if not text or not text.endswith(".")] == []


def test_every_constraint_and_index_has_a_name():
    owners = [one for table in TABLES.values() for one in (table, *table.columns)]
    named = [one for owner in owners for one in owner.constraints]
    named += [index for table in TABLES.values() for index in table.indexes]

    assert sum(isinstance(one, CheckConstraint) for one in named) == 29
    assert [one for one in named if not one.name] == []


def test_tables_are_listed_parents_first():
    places = {name: place for place, name in enumerate(schema.TABLES)}
    links = [
        (key.referred_table.name, name)
        for name, table in TABLES.items()
        for key in table.constraints
        if isinstance(key, ForeignKeyConstraint)
    ]

    assert places.keys() == TABLES.keys() - {"schema_migrations"}
    assert len(links) == 6
    assert all(places[parent] < places[child] for parent, child in links)


@pytest.mark.parametrize("table", schema.TABLES)
def test_the_seed_fills_every_column_in_order(table):
    stamps = [] if table == "events" else ["created_at", "updated_at"]

    assert [*seed.COLUMNS[table].split(), *stamps] == TABLES[table].columns.keys()


@pytest.mark.parametrize("module", WITHOUT_SQLALCHEMY)
def test_sqlalchemy_is_imported_only_to_create(module):
    program = f"import sys, {module}; sys.exit('sqlalchemy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
