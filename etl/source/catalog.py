"""Describes the tables of the source from pg_catalog, in one set of queries for all of them.

information_schema hides constraints from a role that may only SELECT, so it is not used. Nothing here waits for a
lock: pg_partition_tree() would, so partitions are found in pg_inherits. Begin at `read_catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg2.extensions import cursor as Cursor

from etl.config import TablesConfig
from etl.errors import ConfigurationError, TableError
from etl.model import MAX_SOURCE_COLUMNS, OWN_PREFIX, ROW_VERSIONS, Column, Table, WatermarkKind
from etl.policy.column_types import FIRST_USER_OID, SourceType, TargetTypes, map_type
from etl.policy.schema_changes import KnownTable
from etl.postgres.catalog_sql import DEFAULT_SEQUENCE, LEADS_AN_INDEX, LEAVES, PRIMARY_KEY
from etl.postgres.sql import quote_name, read_sql
from etl.source.lost_tables import (
    AbsentTable,
    describe_empty_schema,
    describe_no_tables,
    find_left_out,
    find_out,
)
from etl.source.storage import FILENODES, read_contents

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
        pg_catalog.has_schema_privilege(n.oid, 'usage'),
        ({FILENODES.format(oid="c.oid")}),
        (
            select coalesce(bool_and(coalesce(m.amname = 'heap', false)), true)
            from ({LEAVES.format(oid="c.oid")}) as l
            left join pg_catalog.pg_am as m on m.oid = l.relam
        )
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
    order by c.relname
"""
LIST_COLUMNS = f"""
    select
        a.attrelid, a.attname, a.attnum, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), not a.attnotnull,
        s.seqcache, s.seqincrement,
        (
            select array[n.nspname, q.relname]::text[]
            from pg_catalog.pg_class as q
            join pg_catalog.pg_namespace as n on n.oid = q.relnamespace
            where q.oid = s.seqrelid
        ),
        s.seqrelid,
        {LEADS_AN_INDEX}
    from pg_catalog.pg_attribute as a
    left join lateral ({DEFAULT_SEQUENCE}) as s on true
    where a.attrelid = any (%s) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum
"""
LIST_TYPES = read_sql(__package__, "list_types")
KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that can be replicated, the reasons why others cannot, and notices for the user."""

    tables: tuple[Table, ...]
    refusals: dict[str, str]  # tables that are configured, named or replicated already: they fail
    notices: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # notices of tables that nobody has named and that cannot be replicated
    absent: tuple[AbsentTable, ...] = ()  # replicated before


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
    is_in_reach: bool  # the role may use the schema
    filenodes: str
    has_blocks: bool


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
    sequence: list[str] | None  # its schema and name
    sequence_oid: int | None
    has_index: bool


def read_catalog(
    cursor: Cursor,
    config: TablesConfig,
    target: TargetTypes,
    names: Sequence[str],
    known: Mapping[str, KnownTable],
) -> Catalog:
    """Describe the configured tables; `names`, if given, selects some of them.

    A table in `known`, which was replicated before, is refused where a new one would be left out. Raises
    ConfigurationError when a name in `names` is unknown, when the schema has no tables, and when no table is left to
    replicate.
    """
    cursor.execute(LIST_TABLES, (config.schema,))
    found = {row[1]: _Relation(*row) for row in cursor.fetchall()}
    if not found:
        raise ConfigurationError(describe_empty_schema(cursor, config.schema))
    chosen = _choose(found, config, names, known)
    relations = [found[name] for name in chosen if name in found]
    attributes = _read_attributes(cursor, [relation.oid for relation in relations])
    types = _read_types(cursor, attributes)
    contents = read_contents(cursor, [relation.oid for relation in relations])
    lost = [name for name in chosen if name not in found]
    refusals, absent = find_out(cursor, config.schema, known, lost)
    configured = {name for name in lost if name in config.tables or name in names}
    refusals |= {
        table.name: f"expected a table {config.schema}.{table.name} on the source, found none"
        f"{f' ({table.detail})' if table.name in known else ''}: correct its name in tables.yml, or remove it there"
        for table in absent
        if table.name in configured
    }
    absent = tuple(table for table in absent if table.name not in configured)
    tables, notices, left_out = [], [], []
    for relation in relations:
        own = attributes.get(relation.oid, [])
        reason = _refuse(relation, own, config)
        if reason is None:
            try:
                described = _describe(relation, own, types, target, config)
            except TableError as error:
                refusals[relation.name] = f"{config.schema}.{relation.name}: {error}"
                continue
            tables.append(replace(described, contents=contents.get(relation.oid, {})))
            notices += _notices(tables[-1], relation, own)
        elif relation.name in config.tables or relation.name in names or relation.name in known:
            refusals[relation.name] = reason
        elif relation.kind in "rp":
            left_out.append(f"{reason}; it is left out")
    if not tables and not refusals:
        is_in_reach = any(relation.is_in_reach for relation in found.values())
        raise ConfigurationError(describe_no_tables(config, found.keys(), left_out, is_in_reach=is_in_reach))
    return Catalog(
        tables=tuple(tables),
        refusals=refusals,
        notices=tuple(notices),
        left_out=tuple(left_out),
        absent=() if names else (*absent, *find_left_out(config, known)),
    )


def _choose(
    found: Mapping[str, _Relation], config: TablesConfig, names: Sequence[str], replicated: Mapping[str, KnownTable]
) -> list[str]:
    configured = {name for name, table in config.tables.items() if not table.skip}
    skipped = set(config.tables) - configured
    before = {name for name, table in replicated.items() if table.has_progress}
    known = configured | ((set(found) | before) - skipped if config.discover else set())
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
    cursor.execute(LIST_TYPES, {"oids": oids})
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
            has_own_cast=has_text_cast and oid >= FIRST_USER_OID,
        )
        for oid, name, kind, is_array, element, base, base_name, has_binary, is_extension, has_text_cast in cursor
    }


def _refuse(relation: _Relation, attributes: Sequence[_Attribute], config: TablesConfig) -> str | None:
    """Return why a relation cannot be replicated, with the next step; None when it can."""
    label, name = f"{config.schema}.{relation.name}", quote_name(config.schema, relation.name)
    if relation.kind in KINDS:
        return f"{label} is {KINDS[relation.kind]}: only tables are replicated; name the tables behind it, or skip it"
    privileges = [] if relation.is_in_reach else [f"usage on schema {quote_name(config.schema)}"]
    privileges += [] if relation.is_readable else [f"select on {name}"]
    if privileges:
        grants = "; ".join(f"grant {privilege} to the role of SOURCE_DATABASE_URL" for privilege in privileges)
        return f"{label} cannot be read: run on the source: {grants}"
    if not relation.key:
        return (
            f"{label} has no primary key, which merging its rows requires: run on the source: "
            f"alter table {name} add primary key (...); or skip it in tables.yml"
        )
    taken = [attribute.name for attribute in attributes if attribute.name.startswith(OWN_PREFIX)]
    if taken:
        return (
            f"{label} has a column {taken[0]}, and names that begin with {OWN_PREFIX} are reserved for raw tables: "
            "rename it, or skip the table"
        )
    if len(attributes) > MAX_SOURCE_COLUMNS:
        return (
            f"{label} has {len(attributes):,} columns, and raw tables can have {MAX_SOURCE_COLUMNS:,} of them, because "
            "Tidemark adds its own: drop or move columns on the source, or skip the table in tables.yml"
        )
    return _refuse_watermark(relation.name, label, attributes, config)


def _refuse_watermark(name: str, label: str, attributes: Sequence[_Attribute], config: TablesConfig) -> str | None:
    own = config.table(name)
    column = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    if column is None:
        if name in config.watermarks_by_name:
            return f"{label} has no column {own.watermark!r}, its watermark in tables.yml: name another column, or xmin"
        return None
    kind = WATERMARK_KINDS.get(base_type(column.formatted))
    if kind is None:
        return (
            f'column "{column.name}" of {label} has type {column.formatted}: a watermark column must be a timestamp, '
            "a date or an integer; name another column in tables.yml, or xmin"
        )
    is_in_order = (column.sequence_cache, column.sequence_increment) == (1, 1)
    if kind is not WatermarkKind.INTEGER or is_in_order or own.lookback_rows:
        return None
    if column.sequence is None:
        found, remedy = "no sequence of its own", "name another column"
    else:
        found = f"a sequence with cache {column.sequence_cache} and increment {column.sequence_increment}"
        remedy = f"run on the source: alter sequence {quote_name(*column.sequence)} cache 1 increment by 1"
    return (
        f'column "{column.name}" of {label} has {found}: an integer watermark needs numbers handed out in order; '
        f"{remedy}; or declare in tables.yml how far they can be out of order (lookback_rows), or watermark: xmin"
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
) -> Table:
    own = config.table(relation.name)
    watermark = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    return Table(
        schema=config.schema,
        name=relation.name,
        oid=relation.oid,
        columns=tuple(_describe_column(attribute, types, target) for attribute in attributes),
        key=tuple(relation.key or ()),
        watermark=watermark.name if watermark else None,
        watermark_kind=WATERMARK_KINDS[base_type(watermark.formatted)] if watermark else None,
        watermark_sequence=watermark.sequence_oid if watermark else None,
        config=own,
        estimated_rows=max(relation.estimated_rows, 0),
        filenodes=relation.filenodes,
        has_descendants_apart=relation.has_descendants_apart,
        has_blocks=relation.has_blocks,
    )


def _describe_column(attribute: _Attribute, types: Mapping[int, SourceType], target: TargetTypes) -> Column:
    raw = map_type(attribute.type_oid, attribute.formatted, types, target)
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
    )


def _notices(table: Table, relation: _Relation, attributes: Sequence[_Attribute]) -> list[str]:
    if table.watermark is None:
        if not table.has_blocks:
            return [f"{table.label} is not stored in a heap, so its whole content is read and sent each run"]
        wanted = table.config.watermark
        if wanted is None:
            return []
        return [f"{table.label} has no column {wanted!r}: it is read by its row versions (watermark: {ROW_VERSIONS})"]
    if any(attribute.has_index for attribute in attributes if attribute.name == table.watermark):
        return []
    concurrently = "concurrently " if relation.kind == "r" else ""  # impossible for a partitioned table
    relation_name, column_name = quote_name(table.schema, table.name), quote_name(table.watermark)
    return [
        f'column "{table.watermark}" of {table.label}, its watermark, has no index: the whole table is searched each '
        f"run; run on the source: create index {concurrently}on {relation_name} ({column_name})"
    ]
