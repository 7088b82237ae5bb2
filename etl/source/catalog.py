"""Describes the tables of the source from pg_catalog, in one set of queries for all of them.

information_schema hides constraints from a role that may only SELECT, so it is not used. Nothing here waits for a
lock: pg_partition_tree() would, so partitions are found in pg_inherits. Begin at `read_catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from etl.config import TablesConfig
from etl.errors import ConfigurationError
from etl.keys.orders import KeyOrders, read_key_orders
from etl.model import OWN_PREFIX, Column, Table, WatermarkKind
from etl.policy.column_types import FIRST_USER_OID, SourceType, TargetTypes, map_key_type, map_type
from etl.postgres.catalog_sql import HAVE_KEY_ORDERS, LEADS_AN_INDEX, LEAVES, OWN_SEQUENCE, PRIMARY_KEY
from etl.postgres.sql import quote_name, read_sql
from etl.source.storage import FILENODES

WATERMARK_KINDS = {
    "timestamp with time zone": WatermarkKind.TIMESTAMPTZ,
    "timestamp without time zone": WatermarkKind.TIMESTAMP,
    "date": WatermarkKind.DATE,
    "smallint": WatermarkKind.INTEGER,
    "integer": WatermarkKind.INTEGER,
    "bigint": WatermarkKind.INTEGER,
}

LIST_TABLES = f"""
    select
        c.oid, c.relname, c.relkind::text, c.reltuples::bigint,
        ({PRIMARY_KEY.format(oid="c.oid")}),
        c.relkind = 'r' and c.relhassubclass,
        pg_catalog.has_table_privilege(c.oid, 'select'),
        ({FILENODES.format(oid="c.oid")}),
        (
            select coalesce(bool_and(coalesce(m.amname = 'heap', false)), true)
            from ({LEAVES.format(oid="c.oid")}) as l
            left join pg_catalog.pg_am as m on m.oid = l.relam
        ),
        c.oid in ({HAVE_KEY_ORDERS.format(first_user_oid=FIRST_USER_OID)})
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
    order by c.relname
"""
LIST_COLUMNS = f"""
    select
        a.attrelid, a.attname, a.attnum, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), not a.attnotnull,
        s.seqcache, s.seqincrement, s.seqrelid::regclass::text, s.seqrelid,
        {LEADS_AN_INDEX}
    from pg_catalog.pg_attribute as a
    left join lateral ({OWN_SEQUENCE}) as s on true
    where a.attrelid = any (%s) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum
"""
LIST_TYPES = read_sql(__package__, "list_types")
KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that can be replicated, the reasons why others cannot, and notices for the user."""

    tables: tuple[Table, ...]
    refusals: dict[str, str]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Relation:
    """A row of LIST_TABLES."""

    oid: int
    name: str
    kind: str
    estimated_rows: int
    key: list[str] | None
    has_descendants_apart: bool
    is_readable: bool
    filenodes: str
    has_blocks: bool
    has_key_order: bool


@dataclass(frozen=True)
class _Attribute:
    """A row of LIST_COLUMNS, without the table."""

    name: str
    number: int
    type_oid: int
    formatted: str
    is_nullable: bool
    sequence_cache: int | None
    sequence_increment: int | None
    sequence: str | None
    sequence_oid: int | None
    has_index: bool


def read_catalog(cursor: Cursor, config: TablesConfig, target: TargetTypes, names: Sequence[str]) -> Catalog:
    """Describe the configured tables; `names`, if given, selects some of them.

    Raises ConfigurationError when a name in `names` is neither configured nor found.
    """
    cursor.execute(LIST_TABLES, (config.schema,))
    found = {row[1]: _Relation(*row) for row in cursor.fetchall()}
    chosen = _choose(found, config, names)
    relations = [found[name] for name in chosen if name in found]
    attributes = _read_attributes(cursor, [relation.oid for relation in relations])
    orders = read_key_orders(cursor, [relation.oid for relation in relations if relation.has_key_order])
    types = _read_types(cursor, attributes)
    refusals = {
        name: f"expected a table {config.schema}.{name} on the source, found none: correct its name in tables.yml, "
        "or remove it there"
        for name in chosen
        if name not in found
    }
    tables, notices = [], []
    for relation in relations:
        own, order = attributes.get(relation.oid, []), orders.get(relation.oid, KeyOrders())
        reason = _refuse(relation, own, order, config)
        if reason is None:
            tables.append(_describe(relation, own, types, target, config, orders=order))
            notices += _notices(tables[-1], relation, own)
        elif relation.name in config.tables or relation.name in names:
            refusals[relation.name] = reason
        elif relation.kind in "rp":
            notices.append(f"{reason}; it is left out")
    return Catalog(tables=tuple(tables), refusals=refusals, notices=tuple(notices))


def _choose(found: Mapping[str, _Relation], config: TablesConfig, names: Sequence[str]) -> list[str]:
    configured = {name for name, table in config.tables.items() if not table.skip}
    skipped = set(config.tables) - configured
    known = configured | (set(found) - skipped if config.discover else set())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"expected names of tables in schema {config.schema} of the source, found {', '.join(unknown)}; "
            f"known names: {', '.join(sorted(known)) or 'none'}"
        )
    return sorted(set(names) or known)


def _read_attributes(cursor: Cursor, oids: Sequence[int]) -> dict[int, list[_Attribute]]:
    cursor.execute(LIST_COLUMNS, (list(oids),))
    attributes: dict[int, list[_Attribute]] = {}
    for oid, *rest in cursor:
        attributes.setdefault(oid, []).append(_Attribute(*rest))
    return attributes


def _read_types(cursor: Cursor, attributes: Mapping[int, Sequence[_Attribute]]) -> dict[int, SourceType]:
    oids = sorted({attribute.type_oid for own in attributes.values() for attribute in own})
    cursor.execute(LIST_TYPES, {"oids": oids, "first_user_oid": FIRST_USER_OID})
    return {
        oid: SourceType(
            oid=oid,
            name=name,
            kind=kind,
            is_array=is_array,
            element_oid=element if is_array else 0,
            base_oid=base,
            base_name=base_name or "",
            has_binary=has_binary,
            is_extension=is_extension,
            has_own_cast=has_own_cast,
        )
        for oid, name, kind, is_array, element, base, base_name, has_binary, is_extension, has_own_cast in cursor
    }


def _refuse(
    relation: _Relation, attributes: Sequence[_Attribute], orders: KeyOrders, config: TablesConfig
) -> str | None:
    """Return why a relation cannot be replicated, with the next step; None when it can."""
    label, name = f"{config.schema}.{relation.name}", quote_name(config.schema, relation.name)
    if relation.kind in KINDS:
        return f"{label} is {KINDS[relation.kind]}: only tables are replicated; name the tables behind it"
    if not relation.is_readable:
        return f"{label} cannot be read: run on the source: grant select on {name} to the role of SOURCE_DATABASE_URL"
    if not relation.key:
        return (
            f"{label} has no primary key, which merging its rows requires: run on the source: "
            f"alter table {name} add primary key (...); or skip it in tables.yml"
        )
    for column, fault in orders.faults.items():
        return f'column "{column}" of {label} is part of the primary key, and {fault}'
    taken = [attribute.name for attribute in attributes if attribute.name.startswith(OWN_PREFIX)]
    if taken:
        return (
            f"{label} has a column {taken[0]}, and names that begin with {OWN_PREFIX} are reserved for raw tables: "
            "rename it, or skip the table"
        )
    return _refuse_watermark(relation.name, label, attributes, config)


def _refuse_watermark(name: str, label: str, attributes: Sequence[_Attribute], config: TablesConfig) -> str | None:
    own = config.table(name)
    column = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    if column is None:
        if name in config.watermarks_by_name:
            return f"{label} has no column {own.watermark!r}, its watermark in tables.yml: name another column, or null"
        return None
    kind = WATERMARK_KINDS.get(base_type(column.formatted))
    if kind is None:
        return (
            f'column "{column.name}" of {label} has type {column.formatted}: a watermark column must be a timestamp, '
            "a date or an integer; name another column in tables.yml, or null"
        )
    is_in_order = (column.sequence_cache, column.sequence_increment) == (1, 1)
    if kind is not WatermarkKind.INTEGER or is_in_order or own.lookback_rows:
        return None
    if column.sequence is None:
        found, remedy = "no sequence of its own", "name another column"
    else:
        found = f"a sequence with cache {column.sequence_cache} and increment {column.sequence_increment}"
        remedy = f"run on the source: alter sequence {column.sequence} cache 1 increment by 1"
    return (
        f'column "{column.name}" of {label} has {found}: an integer watermark needs numbers handed out in order; '
        f"{remedy}; or declare in tables.yml how far they can be out of order (lookback_rows), or watermark: null"
    )


def base_type(formatted: str) -> str:
    """Return a type without its precision: timestamp(3) with time zone is a timestamp with time zone."""
    head, _, rest = formatted.partition("(")
    return head + rest.partition(")")[2] if rest else head


def _describe(
    relation: _Relation,
    attributes: Sequence[_Attribute],
    types: Mapping[int, SourceType],
    target: TargetTypes,
    config: TablesConfig,
    *,
    orders: KeyOrders,
) -> Table:
    own = config.table(relation.name)
    key = tuple(relation.key or ())
    watermark = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    return Table(
        schema=config.schema,
        name=relation.name,
        oid=relation.oid,
        columns=tuple(
            _describe_column(attribute, types, orders, target, is_key=attribute.name in key) for attribute in attributes
        ),
        key=key,
        watermark=watermark.name if watermark else None,
        watermark_kind=WATERMARK_KINDS[base_type(watermark.formatted)] if watermark else None,
        watermark_sequence=watermark.sequence_oid if watermark else None,
        config=own,
        estimated_rows=max(relation.estimated_rows, 0),
        filenodes=relation.filenodes,
        has_descendants_apart=relation.has_descendants_apart,
        has_blocks=relation.has_blocks,
    )


def _describe_column(
    attribute: _Attribute,
    types: Mapping[int, SourceType],
    orders: KeyOrders,
    target: TargetTypes,
    *,
    is_key: bool,
) -> Column:
    raw = (map_key_type if is_key else map_type)(attribute.type_oid, attribute.formatted, types, target)
    return Column(
        name=attribute.name,
        number=attribute.number,
        source_type=attribute.formatted,
        raw_type=raw.name,
        is_nullable=attribute.is_nullable,
        is_cast=raw.is_cast,
        is_binary=raw.is_binary,
        remark=raw.remark,
        has_own_cast=raw.has_own_cast,
        key_order=orders.by_column.get(attribute.name),
        raw_equality=raw.equality,
    )


def _notices(table: Table, relation: _Relation, attributes: Sequence[_Attribute]) -> list[str]:
    if table.watermark is None:
        wanted = table.config.watermark
        return [f"{table.label} has no column {wanted!r}: the whole table is read each run"] if wanted else []
    if any(attribute.has_index for attribute in attributes if attribute.name == table.watermark):
        return []
    concurrently = "concurrently " if relation.kind == "r" else ""  # impossible for a partitioned table
    relation_name, column_name = quote_name(table.schema, table.name), quote_name(table.watermark)
    return [
        f'column "{table.watermark}" of {table.label}, its watermark, has no index: the whole table is searched each '
        f"run; run on the source: create index {concurrently}on {relation_name} ({column_name})"
    ]
