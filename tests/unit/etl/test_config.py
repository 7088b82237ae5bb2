"""Configuration is validated at once, and its secrets stay out of sight."""

import pytest

from etl.config import DatabaseUrl, load_settings, parse_tables
from etl.errors import ConfigurationError
from etl.model import TableConfig

ENVIRONMENT = {
    "SOURCE_DATABASE_URL": "postgresql://reader:secret@127.0.0.1:5433/source",
    "TARGET_DATABASE_URL": "postgresql://loader:secret@127.0.0.1:5434/warehouse",
}


def test_the_shipped_tables_file_is_valid():
    tables = load_settings(ENVIRONMENT).tables

    assert tables.discover
    assert tables.table("orders") == TableConfig()
    assert tables.table("events") == TableConfig(watermark="event_id", deletes="none")
    assert tables.table("schema_migrations").skip


def test_every_fault_is_reported_together():
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"SOURCE_DATABASE_URL": "", "ETL_PARALLEL_TABLES": "0", "ETL_LOCK_WAIT_SECONDS": "nan"})

    faults = str(caught.value).splitlines()
    assert len(faults) == 4
    assert "ETL_PARALLEL_TABLES is '0': expected a whole number of 1 or more" in faults
    assert "ETL_LOCK_WAIT_SECONDS is 'nan': expected a number of 0 or more" in faults


def test_a_password_is_in_no_repr():
    settings = load_settings(ENVIRONMENT)

    assert "secret" not in repr(settings)
    assert repr(settings.source_url) == "DatabaseUrl('127.0.0.1:5433/source')"
    assert DatabaseUrl("host=db dbname=x password=secret").address == "db:5432/x"


def test_a_tables_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="ETL_TABLES"):
        load_settings({**ENVIRONMENT, "ETL_TABLES": str(tmp_path / "none.yml")})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tables: [a, b]", "tables: expected a mapping of table names"),
        ("tables: {orders: {}, orders: {}}", "'orders' is given twice"),
        ("tables: {1: {}}", "tables: expected a table name, found 1"),
        ("table: {}", "did you mean 'tables'?"),
        ("defaults: {batch_rows: true}", "expected a whole number of 1 or more, found True"),
        ("tables: {orders: {on_schema_change: maybe}}", "expected evolve or freeze, found 'maybe'"),
        ("- a", "the file: expected a mapping"),
        ("tables: {orders: ", "is not YAML"),
    ],
)
def test_a_fault_in_the_tables_file_is_told(tmp_path, text, fault):
    path = tmp_path / "tables.yml"
    path.write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        load_settings({**ENVIRONMENT, "ETL_TABLES": str(path)})

    assert fault in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_table_inherits_the_defaults_it_does_not_state():
    faults: list[str] = []

    tables = parse_tables({"defaults": {"batch_rows": 7}, "tables": {"a": {"watermark": None}, "b": None}}, faults)

    assert faults == []
    assert tables.table("a") == TableConfig(watermark=None, batch_rows=7)
    assert tables.table("b") == tables.table("c") == TableConfig(batch_rows=7)
