"""Decides which relations of the source can be replicated, and by which watermark; says why others cannot.

No I/O: `etl.source.catalog` reads the relations. Begin at `find_obstacle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from etl.config import TablesConfig
from etl.keys.orders import KeyOrders
from etl.model import MAX_SOURCE_COLUMNS, OWN_PREFIX, DescendantRows, WatermarkKind
from etl.postgres.sql import quote_name

WATERMARK_KINDS = {
    "timestamp with time zone": WatermarkKind.TIMESTAMPTZ,
    "timestamp without time zone": WatermarkKind.TIMESTAMP,
    "date": WatermarkKind.DATE,
    "smallint": WatermarkKind.INTEGER,
    "integer": WatermarkKind.INTEGER,
    "bigint": WatermarkKind.INTEGER,
}
KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
# One that inherits from a table: its schema, its name, and 'apart' if it can be replicated on its own, otherwise ''.
Descendant = tuple[str, str, str]


@dataclass(frozen=True)
class Relation:
    """A relation, as the catalog lists it."""

    oid: int
    name: str
    kind: str
    estimated_rows: int
    key: list[str] | None
    key_index: int | None
    descendants: list[Descendant] | None
    is_readable: bool
    is_in_reach: bool  # the role may use the schema
    filenodes: str
    has_blocks: bool
    has_key_order: bool

    @property
    def descendant_rows(self) -> DescendantRows:
        return find_rows(self.descendants)


@dataclass(frozen=True)
class Attribute:
    """A column of a relation, as the catalog lists it."""

    name: str
    number: int
    type_oid: int
    formatted: str
    is_nullable: bool
    sequence_cache: int | None
    sequence_increment: int | None
    sequence: list[str] | None  # its schema and name
    sequence_oid: int | None
    has_index: bool


def find_rows(descendants: Sequence[Descendant] | None) -> DescendantRows:
    """Return where the rows of a table's descendants are."""
    if not descendants:
        return "none"
    return "apart" if any(apart for _, _, apart in descendants) else "within"


def names_read_with(schema: str, descendants: Sequence[Descendant] | None) -> set[str]:
    """Return the names of the descendants in a table's schema whose rows are read as rows of that table."""
    if find_rows(descendants) == "apart":
        return set()
    return {name for its_schema, name, _ in descendants or () if its_schema == schema}


def find_lost(descendants: Sequence[Descendant] | None) -> list[str]:
    """Return the descendants whose rows would be nowhere: they cannot stand apart, as others of the table do."""
    if find_rows(descendants) != "apart":
        return []
    return [f"{schema}.{name}" for schema, name, apart in descendants or () if not apart]


def find_obstacle(
    relation: Relation, attributes: Sequence[Attribute], orders: KeyOrders, config: TablesConfig
) -> str | None:
    """Return why a relation cannot be replicated, with the next step; None when it can."""
    return next(_find_obstacles(relation, attributes, orders, config), None)


def _find_obstacles(
    relation: Relation, attributes: Sequence[Attribute], orders: KeyOrders, config: TablesConfig
) -> Iterator[str]:
    label, name = f"{config.schema}.{relation.name}", quote_name(config.schema, relation.name)
    if relation.kind in KINDS:
        yield f"{label} is {KINDS[relation.kind]}: only tables are replicated; name the tables behind it, or skip it"
    privileges = [] if relation.is_in_reach else [f"usage on schema {quote_name(config.schema)}"]
    privileges += [] if relation.is_readable else [f"select on {name}"]
    if privileges:
        grants = "; ".join(f"grant {privilege} to the role of SOURCE_DATABASE_URL" for privilege in privileges)
        yield f"{label} cannot be read: run on the source: {grants}"
    key = config.table(relation.name).key
    if not relation.key and key:
        yield (
            f"{label} has no unique index over exactly {', '.join(key)}, all NOT NULL, as its `key` in tables.yml "
            "requires: create it on the source, or correct `key` (`etl discover` proposes one)"
        )
    elif not relation.key:
        yield (
            f"{label} has no primary key, which merging its rows requires: run on the source: "
            f"alter table {name} add primary key (...); or name the columns of a unique index as its `key` in "
            "tables.yml (`etl discover` proposes one); or skip it there"
        )
    lost = find_lost(relation.descendants)
    if lost:
        yield (
            f"{label} has descendants by inheritance that are replicated as tables of their own, and others that "
            f"cannot be, whose rows would be missing: {', '.join(lost)}: give each of these a primary key, and have "
            f"all in schema {config.schema}; or skip {relation.name} in tables.yml"
        )
    for column, fault in orders.faults.items():
        yield f'column "{column}" of {label} is part of the key, and {fault}'
    taken = [attribute.name for attribute in attributes if attribute.name.startswith(OWN_PREFIX)]
    if taken:
        yield (
            f"{label} has a column {taken[0]}, and names that begin with {OWN_PREFIX} are reserved for raw tables: "
            "rename it, or skip the table"
        )
    if len(attributes) > MAX_SOURCE_COLUMNS:
        yield (
            f"{label} has {len(attributes):,} columns, and raw tables can have {MAX_SOURCE_COLUMNS:,} of them, because "
            "Tidemark adds its own: drop or move columns on the source, or skip the table in tables.yml"
        )
    masked = config.table(relation.name).columns or {}
    needed = {*(relation.key or ()), config.table(relation.name).watermark}
    names = {attribute.name for attribute in attributes}
    for column in masked:
        if column not in names:
            yield f"{label} has no column {column!r}, which `columns` in tables.yml masks: correct its name there"
        elif column in needed:
            yield (
                f'column "{column}" of {label} is its key or watermark, by which rows are read and merged: remove it '
                "from `columns` in tables.yml, or name another key or watermark"
            )
    yield from _find_faults_of_watermark(relation.name, label, attributes, config)


def _find_faults_of_watermark(
    name: str, label: str, attributes: Sequence[Attribute], config: TablesConfig
) -> Iterator[str]:
    own = config.table(name)
    column = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    if column is None:
        if name in config.watermarks_by_name:
            yield f"{label} has no column {own.watermark!r}, its watermark in tables.yml: name another column, or xmin"
        return
    kind = WATERMARK_KINDS.get(base_type(column.formatted))
    if kind is None:
        yield (
            f'column "{column.name}" of {label} has type {column.formatted}: a watermark column must be a timestamp, '
            "a date or an integer; name another column in tables.yml, or xmin"
        )
        return
    is_in_order = (column.sequence_cache, column.sequence_increment) == (1, 1)
    if kind is not WatermarkKind.INTEGER or is_in_order or own.lookback_rows:
        return
    if column.sequence is None:
        found, remedy = "no sequence of its own", "name another column"
    else:
        found = f"a sequence with cache {column.sequence_cache} and increment {column.sequence_increment}"
        remedy = f"run on the source: alter sequence {quote_name(*column.sequence)} cache 1 increment by 1"
    yield (
        f'column "{column.name}" of {label} has {found}: an integer watermark needs numbers handed out in order; '
        f"{remedy}; or declare in tables.yml how far they can be out of order (lookback_rows), or watermark: xmin"
    )


def base_type(formatted: str) -> str:
    """Return a type without its precision: timestamp(3) with time zone is a timestamp with time zone."""
    head, _, rest = formatted.partition("(")
    return head + rest.partition(")")[2] if rest else head
