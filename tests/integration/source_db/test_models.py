"""What the database holds after `schema.apply` is what the models declare, and nothing else."""

from contextlib import contextmanager

import psycopg2
import pytest
from sqlalchemy import CheckConstraint, Enum, ForeignKeyConstraint, Inspector, create_engine, inspect
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.pool import NullPool

from source_db import models, schema
from tests.integration.dbt.built_shop import open_database

TABLES = models.metadata.tables
POSTGRES = dialect()


@contextmanager
def open_inspector(url):
    engine = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(url), poolclass=NullPool)
    with engine.connect() as connection:
        yield inspect(connection)


@pytest.fixture(scope="module")
def catalog(source_server):
    """What SQLAlchemy reads of a database in which the schema was created."""
    with open_database(source_server) as url:
        schema.apply(url)
        with open_inspector(url) as inspector:
            yield inspector


def checks_of(table):
    owners = [table, *table.columns]
    return [one for owner in owners for one in owner.constraints if isinstance(one, CheckConstraint)]


def query(inspector: Inspector, statement):
    return inspector.bind.exec_driver_sql(statement).all()


def found_columns(columns):
    return [
        (
            column["name"],
            column["type"].compile(POSTGRES),
            column["nullable"],
            column["default"] is not None,
            "identity" in column,
            column["comment"],
        )
        for column in columns
    ]


def declared_columns(table):
    return [
        (
            column.name,
            column.type.compile(POSTGRES),
            column.nullable,
            column.server_default is not None and column.identity is None,
            column.identity is not None,
            column.comment,
        )
        for column in table.columns
    ]


def test_the_tables_are_those_declared(catalog):
    assert query(catalog, "select version from schema_migrations") == [("1",)]
    assert set(catalog.get_table_names()) == set(TABLES)
    assert len(TABLES) == 9


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_table_has_the_columns_declared(catalog, table):
    assert found_columns(catalog.get_columns(table.name)) == declared_columns(table)
    assert catalog.get_table_comment(table.name)["text"] == table.comment


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_table_has_the_constraints_declared(catalog, table):
    declared_keys = {
        (key.name, *(element.target_fullname for element in key.elements), key.ondelete)
        for key in table.constraints
        if isinstance(key, ForeignKeyConstraint)
    }
    found_keys = {
        (
            key["name"],
            *(f"{key['referred_table']}.{column}" for column in key["referred_columns"]),
            key["options"].get("ondelete"),
        )
        for key in catalog.get_foreign_keys(table.name)
    }
    indexes = {(index.name, *index.columns.keys()) for index in table.indexes}
    unique = {column.name for column in table.columns if column.unique}

    assert found_keys == declared_keys
    assert {check["name"] for check in catalog.get_check_constraints(table.name)} == {
        check.name for check in checks_of(table)
    }
    assert {
        (index["name"], *index["column_names"])
        for index in catalog.get_indexes(table.name)
        if not index.get("duplicates_constraint")
    } == indexes
    assert {one["column_names"][0] for one in catalog.get_unique_constraints(table.name)} == unique
    assert catalog.get_pk_constraint(table.name)["constrained_columns"] == table.primary_key.columns.keys()


def test_a_type_has_the_labels_and_comment_declared(catalog):
    declared = {name: [label.value for label in kind] for kind, name in models.ENUM_TYPES.items()}
    used = {column.type.name for table in TABLES.values() for column in table.columns if isinstance(column.type, Enum)}
    comments = query(
        catalog, "select typname, obj_description(oid, 'pg_type') from pg_type where typtype = 'e' order by typname"
    )

    assert {one["name"]: one["labels"] for one in catalog.get_enums()} == declared
    assert used == set(declared)
    assert dict(map(tuple, comments)) == {name: kind.__doc__ for kind, name in models.ENUM_TYPES.items()}


def test_every_updated_at_is_maintained_by_a_trigger(catalog):
    triggers = query(
        catalog, "select tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal"
    )
    stamped = {name for name, table in TABLES.items() if "updated_at" in table.columns}

    assert {table for table, _, _ in triggers} == stamped == set(schema.TABLES) - {"events"}
    assert {name for _, name, _ in triggers} == {"touch_updated_at"}
    assert all("BEFORE UPDATE ON" in definition and "FOR EACH ROW" in definition for _, _, definition in triggers)


def test_every_updated_at_is_indexed(catalog):
    indexed = {name for name in TABLES for one in catalog.get_indexes(name) if one["column_names"] == ["updated_at"]}

    assert indexed == set(schema.TABLES) - {"events"}


def test_existing_table_is_rejected_and_nothing_is_created(source_url):
    with psycopg2.connect(source_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table orders (a int)")
    connection.close()

    with pytest.raises(psycopg2.errors.DuplicateTable, match='relation "orders" already exists'):
        schema.apply(source_url)

    with open_inspector(source_url) as inspector:
        assert inspector.get_table_names() == ["orders"]
        assert inspector.get_enums() == []


def test_second_schema_is_rejected_with_the_next_step(source_url):
    schema.apply(source_url)

    with pytest.raises(schema.SourceDatabaseError, match="python -m source_db seed"):
        schema.apply(source_url)
