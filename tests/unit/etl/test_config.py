"""Configuration is validated at once, and its secrets stay out of sight."""

import dataclasses
import re
from pathlib import Path

import pytest

from etl.config import Settings, load_settings, parse_tables
from etl.database_url import DatabaseUrl
from etl.errors import ConfigurationError
from etl.model import TableConfig

ROOT = Path(__file__).parents[3]
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


def test_all_configuration_errors_are_reported_together():
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
        ("defaults: {max_delete_rows: -1}", "expected a whole number of 0 or more, found -1"),
        ("tables: {orders: {on_schema_change: maybe}}", "expected evolve or freeze, found 'maybe'"),
        ("defaults: {null_watermarks: skip}", "expected read or refuse, found 'skip'"),
        ("defaults: {lookback_seconds: -1}", "expected a number of seconds, 0 or more, found -1"),
        ("defaults: {lookback_rows: 1.5}", "expected a whole number of 0 or more, found 1.5"),
        ("tables: {orders: {max_rejected_rows: no}}", "expected a whole number of 0 or more, found False"),
        ("tables: {orders: {key: order_id}}", "expected a list of column names, each once, found 'order_id'"),
        ("tables: {orders: {key: []}}", "expected a list of column names, each once, found []"),
        ("tables: {orders: {key: [a, a]}}", "expected a list of column names, each once, found ['a', 'a']"),
        ("defaults: {key: [a]}", "defaults: unknown entry 'key'"),
        ("- a", "the file: expected a mapping"),
        ("tables: {orders: ", "is not YAML"),
    ],
)
def test_tables_file_error_is_reported(tmp_path, text, fault):
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


def test_one_connection_is_too_few_for_the_source():
    with pytest.raises(ConfigurationError, match="expected 2 or more"):
        load_settings({**ENVIRONMENT, "ETL_MAX_CONNECTIONS_SOURCE": "1"})


def test_source_connections_limit_parallel_tables():
    settings = load_settings({**ENVIRONMENT, "ETL_MAX_CONNECTIONS_SOURCE": "4", "ETL_PARALLEL_TABLES": "8"})

    assert settings.workers == 3
    assert dataclasses.replace(settings, parallel_tables=2).workers == 2


@pytest.mark.parametrize(
    ("rate", "seconds", "expected"),
    [("0", "1", 131_072), ("8.192", "10", 10_000), ("1000", "3600", 131_072), ("0.001", "0", 1)],
)
def test_load_range_is_readable_while_its_snapshot_is_held(rate, seconds, expected):
    settings = load_settings({**ENVIRONMENT, "ETL_MAX_SOURCE_MB_PER_SECOND": rate, "ETL_MAX_SNAPSHOT_SECONDS": seconds})

    assert settings.range_blocks == expected


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (".env.example", r"^# (ETL_\w+)=(.*)$"),
        ("docs/configuration.md", r"^\| `(ETL_\w+)` \|.*\| ([^|]+) \|$"),
    ],
)
def test_every_setting_is_documented_with_its_default(path, pattern):
    documented = dict(re.findall(pattern, (ROOT / path).read_text(), flags=re.MULTILINE))
    documented.pop("ETL_TABLES", None)

    settings = [setting for setting in dataclasses.fields(Settings) if setting.default is not dataclasses.MISSING]
    assert {name: float(value) for name, value in documented.items()} == {
        f"ETL_{setting.name.upper()}": float(setting.default) for setting in settings
    }


def test_every_tables_file_entry_is_documented_with_its_default():
    text = (ROOT / "docs/configuration.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", text, flags=re.MULTILINE))

    for entry in dataclasses.fields(TableConfig):
        default = {"None": "null", "True": "true", "False": "false"}.get(str(entry.default), str(entry.default))
        assert documented[entry.name].strip("`").removesuffix(".0") == default.removesuffix(".0")
