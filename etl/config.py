"""Reads and validates the settings of a run: environment variables and `tables.yml`. No other module reads them.

One ConfigurationError lists every fault found. Begin at `load_settings`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from etl.database_url import DatabaseUrl, read_url
from etl.errors import ConfigurationError
from etl.model import ROW_VERSIONS, Deletes, Mask, MaskKey, NullWatermarks, OnSchemaChange, TableConfig

MAX_SPAN = 1_000_000  # in hours or days: both sides can still add it to a date
MIN_SOURCE_CONNECTIONS = 2  # one holds the snapshot, another reads
BYTES_PER_MB = 1_000_000
LEAST_KEY_CHARACTERS = 16
BLOCK_BYTES = 8192  # the default block size of PostgreSQL
DEFAULT_TABLES_PATH = Path(__file__).with_name("tables.yml")


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """The contents of tables.yml."""

    schema: str = "public"
    discover: bool = True
    defaults: TableConfig = field(default_factory=TableConfig)
    tables: Mapping[str, TableConfig] = field(default_factory=dict)
    watermarks_by_name: frozenset[str] = frozenset()  # tables with a watermark column of their own
    mask_key: MaskKey | None = None  # for columns that are hashed

    def table(self, name: str) -> TableConfig:
        return self.tables.get(name, self.defaults)

    def with_tombstone_days(self, days: float) -> TablesConfig:
        """Return a copy in which tombstones of every table are purged at this age."""
        return replace(
            self,
            defaults=replace(self.defaults, tombstone_days=days),
            tables={name: replace(table, tombstone_days=days) for name, table in self.tables.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; fields after the first three have an environment variable, ETL_ and the field's name."""

    source_url: DatabaseUrl
    target_url: DatabaseUrl
    tables: TablesConfig
    parallel_tables: int = 2
    max_connections_source: int = 3
    max_source_mb_per_second: float = 0.0  # of COPY data, over all tables; 0: no limit
    fence_wait_seconds: float = 1.0
    fence_margin_seconds: float = 5.0
    lock_wait_seconds: float = 15.0
    lock_timeout_seconds: float = 10.0
    statement_timeout_seconds: float = 7200.0
    stall_timeout_seconds: float = 600.0  # of COPY, after its first byte; 0: no limit
    max_snapshot_seconds: float = 1800.0  # then progress is committed, and the run continues at a new snapshot
    load_range_blocks: int = 131_072  # of a first load, per transaction: 1 GB in blocks of 8 kB
    connect_timeout_seconds: int = 10
    max_attempts: int = 5

    @property
    def workers(self) -> int:
        """How many tables are read at the same time: one session on the source is needed to hold the snapshot."""
        return min(self.parallel_tables, self.max_connections_source - 1)

    @property
    def range_blocks(self) -> int:
        """How many blocks a first load reads in one transaction: at most what the throttle allows at one snapshot."""
        if not self.max_source_mb_per_second:
            return self.load_range_blocks
        bytes_at_a_snapshot = self.max_source_mb_per_second * BYTES_PER_MB * self.max_snapshot_seconds
        return max(1, min(self.load_range_blocks, int(bytes_at_a_snapshot / BLOCK_BYTES)))


def load_source_settings(environment: Mapping[str, str] = os.environ, *, schema: str = "public") -> Settings:
    """Return the settings of a command that needs only the source, and no tables.yml."""
    known = {name: value for name, value in environment.items() if name != "ETL_TABLES"}
    known["TARGET_DATABASE_URL"] = "postgresql://"
    return replace(load_settings(known), tables=TablesConfig(schema=schema))


def load_target_settings(environment: Mapping[str, str], url: str) -> Settings:
    """Return the settings of a command that needs only the target, at this URL, and no tables.yml."""
    known = {name: value for name, value in environment.items() if name != "ETL_TABLES"}
    return load_settings(known | {"SOURCE_DATABASE_URL": "postgresql://", "TARGET_DATABASE_URL": url})


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the validated settings, or raise a ConfigurationError that lists every fault."""
    faults: list[str] = []
    source_url = _read_url(environment, "SOURCE_DATABASE_URL", faults)
    target_url = _read_url(environment, "TARGET_DATABASE_URL", faults)
    numbers = {
        setting.name: _read_number(environment, setting.name, setting.default, faults)
        for setting in fields(Settings)
        if setting.name not in ("source_url", "target_url", "tables")
    }
    path = Path(environment.get("ETL_TABLES") or DEFAULT_TABLES_PATH)
    tables = _with_mask_key(_read_tables(path, faults), environment.get("ETL_MASK_KEY", ""), faults)
    if 0 < numbers["max_connections_source"] < MIN_SOURCE_CONNECTIONS:
        faults.append(
            f"ETL_MAX_CONNECTIONS_SOURCE is {numbers['max_connections_source']}: expected {MIN_SOURCE_CONNECTIONS} "
            "or more, because one session holds the snapshot and another reads"
        )
    if faults:
        raise ConfigurationError(*faults)
    return Settings(source_url=source_url, target_url=target_url, tables=tables, **numbers)


def _read_url(environment: Mapping[str, str], name: str, faults: list[str]) -> DatabaseUrl:
    text = environment.get(name, "")
    if not text:
        faults.append(f"{name} is not set: set it to a URL such as postgresql://user:password@host:5432/database")
        return DatabaseUrl("")
    try:
        read_url(text, name)
    except ConfigurationError as error:
        faults.append(str(error))
    return DatabaseUrl(text)


def _read_number(environment: Mapping[str, str], name: str, default: Any, faults: list[str]) -> Any:
    text = environment.get(f"ETL_{name.upper()}", "")
    if not text:
        return default
    try:
        value = type(default)(text)
    except ValueError:
        value = -1
    least = 1 if isinstance(default, int) else 0
    if not least <= value < float("inf"):
        kind = "a whole number of 1 or more" if least else "a number of 0 or more"
        faults.append(f"ETL_{name.upper()} is {text!r}: expected {kind}")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, instead of silently keeping the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_tables(path: Path, faults: list[str]) -> TablesConfig:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506 a SafeLoader
    except OSError as error:
        faults.append(f"{path} cannot be read: {error.strerror}; create it, or name another file with ETL_TABLES")
        return TablesConfig()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        faults.append(f"{path} is not YAML: {' '.join(str(error).split())}")
        return TablesConfig()
    found: list[str] = []
    tables = parse_tables({} if document is None else document, found)
    faults.extend(f"{path}: {fault}" for fault in found)
    return tables


def _with_mask_key(tables: TablesConfig, secret: str, faults: list[str]) -> TablesConfig:
    hashed = [
        f"{name}.{column}"
        for name, table in tables.tables.items()
        for column, mask in (table.columns or {}).items()
        if mask.kind == "hash"
    ]
    if hashed and len(secret) < LEAST_KEY_CHARACTERS:
        faults.append(
            f"ETL_MASK_KEY has {len(secret)} characters: hashing {', '.join(hashed)} needs a secret of "
            f"{LEAST_KEY_CHARACTERS} or more, such as `openssl rand -hex 32` prints"
        )
    return replace(tables, mask_key=MaskKey(secret) if hashed else None)


def parse_tables(document: Any, faults: list[str]) -> TablesConfig:
    """Return the configuration in a parsed tables.yml; append each fault to `faults`."""
    top = _checked(document, _TOP_FIELDS, "the file", faults)
    defaults_given = _without_column(_checked(top.get("defaults", {}), _DEFAULT_FIELDS, "defaults", faults))
    tables_given = top.get("tables") or {}
    if not isinstance(tables_given, dict):
        faults.append(f"tables: expected a mapping of table names, found {tables_given!r}")
        tables_given = {}
    tables = {}
    named = set()
    for name, given in tables_given.items():
        if not isinstance(name, str):
            faults.append(f"tables: expected a table name, found {name!r}; put it in quotes")
            continue
        own = _without_column(_checked({} if given is None else given, _TABLE_FIELDS, f"tables.{name}", faults))
        own |= {"key": tuple(own["key"])} if "key" in own else {}
        own |= {"columns": {column: _mask(value) for column, value in own.get("columns", {}).items()} or None}
        tables[name] = TableConfig(**{**defaults_given, **own})
        if own.get("watermark") is not None:
            named.add(name)
    return TablesConfig(
        schema=top.get("schema", "public"),
        discover=top.get("discover", True),
        defaults=TableConfig(**defaults_given),
        tables=tables,
        watermarks_by_name=frozenset(named),
    )


def _without_column(fields: dict[str, Any]) -> dict[str, Any]:
    """Read `watermark: xmin`, which no column can be called, as no column."""
    return {**fields, "watermark": None} if fields.get("watermark") == ROW_VERSIONS else fields


def _one_of(literal: Any) -> tuple[Callable[[Any], bool], str]:
    allowed = get_args(literal)
    return (lambda value: value in allowed), " or ".join(allowed)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_name, value)) and len(set(value)) == len(value)


def _are_masks(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_name(name) and _mask(given) is not None for name, given in value.items())


def _mask(given: Any) -> Mask | None:
    """Return the mask that an entry of `columns` describes, None if it describes none."""
    match given:
        case "exclude" | "hash":
            return Mask(kind=given)
        case None | "null":
            return Mask(kind="null")
        case {"first": int(characters), **more} if characters > 0 and not more and characters is not True:
            return Mask(kind="first", characters=characters)
        case {"constant": str(text), **more} if not more:
            return Mask(kind="constant", constant=text)
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_count_or_zero(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_span(value: Any) -> bool:
    return _is_number(value) and value <= MAX_SPAN


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and value <= 1


_Fields = Mapping[str, tuple[Callable[[Any], bool], str]]
_BOOLEAN = (lambda value: isinstance(value, bool)), "true or false"
_MAPPING = (lambda value: value is None or isinstance(value, dict)), "a mapping"
_DEFAULT_FIELDS: _Fields = {
    "watermark": ((lambda value: value is None or _is_name(value)), "a column name, or xmin"),
    "null_watermarks": _one_of(NullWatermarks),
    "lookback_seconds": (_is_number, "a number of seconds, 0 or more"),
    "lookback_rows": (_is_count_or_zero, "a whole number of 0 or more"),
    "deletes": _one_of(Deletes),
    "max_delete_fraction": (_is_fraction, "a number from 0 to 1"),
    "max_delete_rows": (_is_count_or_zero, "a whole number of 0 or more"),
    "reconcile_every_hours": (_is_span, "a number of hours from 0 to 1,000,000"),
    "tombstone_days": (
        (lambda value: value is None or _is_span(value)),
        "a number of days from 0 to 1,000,000, or null",
    ),
    "on_schema_change": _one_of(OnSchemaChange),
    "batch_rows": (_is_count, "a whole number of 1 or more"),
    "max_rejected_rows": (_is_count_or_zero, "a whole number of 0 or more"),
    "time_zone": (_is_name, "the name of a time zone, such as Europe/Rome"),
}
_TABLE_FIELDS: _Fields = {
    **_DEFAULT_FIELDS,
    "key": (_is_list_of_names, "a list of column names, each once"),
    "columns": (
        _are_masks,
        "for each column exclude, 'null', hash, {first: NUMBER OF CHARACTERS} or {constant: TEXT}",
    ),
    "where": (_is_name, "a condition in SQL, as after WHERE"),
    "skip": _BOOLEAN,
}
_TOP_FIELDS: _Fields = {
    "schema": (_is_name, "the name of a schema"),
    "discover": _BOOLEAN,
    "defaults": _MAPPING,
    "tables": (lambda _: True, "a mapping"),  # checked entry by entry
}


def _checked(given: Any, allowed: _Fields, where: str, faults: list[str]) -> dict[str, Any]:
    """Return the valid entries of a mapping; append a fault for each of the others."""
    if given is None:
        given = {}
    if not isinstance(given, dict):
        faults.append(f"{where}: expected a mapping, found {given!r}")
        return {}
    valid = {}
    for key, value in given.items():
        if key not in allowed:
            faults.append(f"{where}: unknown entry {key!r}{_suggest(str(key), list(allowed))}")
        elif not allowed[key][0](value):
            faults.append(f"{where}.{key}: expected {allowed[key][1]}, found {value!r}")
        else:
            valid[key] = value
    return valid


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known entries are {', '.join(known)}"
