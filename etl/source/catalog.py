"""Describes the tables of the source from pg_catalog, in one set of queries for all of them.

information_schema hides constraints from a role that may only SELECT, so it is not used. Nothing here waits for a
lock: pg_partition_tree() would, so partitions are found in pg_inherits. Begin at `read_catalog`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg2.extensions import cursor as Cursor

from etl.config import TablesConfig
from etl.errors import ConfigurationError, TableError
from etl.keys.orders import KeyOrders, read_key_orders
from etl.model import ROW_VERSIONS, Column, Mask, SourceIdentity, Table, TableConfig
from etl.policy.column_types import FIRST_USER_OID, SourceType, TargetTypes, map_key_type, map_type
from etl.policy.schema_changes import KnownTable
from etl.postgres.catalog_sql import (
    DEFAULT_SEQUENCE,
    DESCENDANTS,
    HAVE_KEY_ORDERS,
    IDENTIFYING_COLUMNS,
    LEADS_AN_INDEX,
    LEAVES,
    PRIMARY_KEY,
)
from etl.postgres.sql import quote_name, read_sql
from etl.source.eligibility import (
    WATERMARK_KINDS,
    Attribute,
    Relation,
    base_type,
    find_obstacle,
    names_read_with,
)
from etl.source.lost_tables import (
    AbsentTable,
    describe_empty_schema,
    describe_no_tables,
    find_left_out,
    find_out,
    is_left_out,
)
from etl.source.storage import FILENODES, read_contents

LIST_TABLES = f"""
    select
        c.oid, c.relname, c.relkind::text, c.reltuples::bigint,
        ({PRIMARY_KEY.format(oid="c.oid")}),
        (select i.indexrelid from pg_catalog.pg_index as i where i.indrelid = c.oid and i.indisprimary),
        {DESCENDANTS},
        pg_catalog.has_table_privilege(c.oid, 'select'),
        pg_catalog.has_schema_privilege(n.oid, 'usage'),
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
LIST_IDENTIFYING = f"""
    select u.indrelid, u.indexrelid, k.names
    from pg_catalog.pg_index as u
    cross join lateral ({IDENTIFYING_COLUMNS}) as k (names)
    where u.indrelid = any (%s)
    order by u.indisprimary desc, u.indexrelid
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


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that can be replicated, the reasons why others cannot, and notices for the user."""

    tables: tuple[Table, ...]
    refusals: dict[str, str]  # tables that are configured, named or replicated already: they fail
    notices: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # notices of tables that nobody has named and that cannot be replicated
    absent: tuple[AbsentTable, ...] = ()  # replicated before


def read_catalog(
    cursor: Cursor,
    config: TablesConfig,
    target: TargetTypes,
    names: Sequence[str],
    known: Mapping[str, KnownTable],
    *,
    source: SourceIdentity,
) -> Catalog:
    """Describe the configured tables of this source; `names`, if given, selects some of them.

    A table in `known`, which was replicated before, is refused where a new one would be left out. Raises
    ConfigurationError when a name in `names` is unknown, when the schema has no tables, and when no table is left to
    replicate.
    """
    cursor.execute(LIST_TABLES, (config.schema,))
    found = {row[1]: Relation(*row) for row in cursor.fetchall()}
    if not found:
        found_instead = describe_empty_schema(cursor, config.schema)
        raise ConfigurationError(f"{found_instead}; correct `schema:` in tables.yml, or SOURCE_DATABASE_URL")
    chosen = _choose(found, config, names, known)
    relations = _find_own_keys(cursor, config, [found[name] for name in chosen if name in found])
    attributes = _read_attributes(cursor, [relation.oid for relation in relations])
    indexes = [relation.key_index for relation in relations if relation.key_index and relation.has_key_order]
    orders = read_key_orders(cursor, indexes)
    types = _read_types(cursor, attributes)
    contents = read_contents(cursor, [relation.oid for relation in relations])
    lost = [name for name in chosen if name not in found]
    refusals, absent = find_out(cursor, source, config.schema, known, lost)
    configured = {name for name in lost if name in config.tables or name in names}
    refusals |= {
        table.name: f"expected a table {config.schema}.{table.name} on the source, found none"
        f"{f' ({table.detail})' if table.name in known else ''}: correct its name in tables.yml, or remove it there"
        for table in absent
        if table.name in configured
    }
    absent = tuple(table for table in absent if table.name not in configured)
    tables: list[Table] = []
    notices: list[str] = []
    left_out: list[str] = []
    read_with_others = {name for relation in relations for name in names_read_with(config.schema, relation.descendants)}
    for relation in relations:
        own, order = attributes.get(relation.oid, []), orders.get(relation.oid, KeyOrders())
        reason = find_obstacle(relation, own, order, config)
        if reason is None:
            try:
                described = _describe(relation, own, types, target, config, orders=order)
            except TableError as error:
                refusals[relation.name] = f"{config.schema}.{relation.name}: {error}"
                continue
            tables.append(
                replace(described, contents=_sign_masks(contents.get(relation.oid, {}), described.config, config))
            )
            notices += _notices(tables[-1], relation, own, config)
        elif relation.name in config.tables or relation.name in names or relation.name in known:
            refusals[relation.name] = reason
        elif relation.kind in "rp" and relation.name not in read_with_others:
            left_out.append(f"{reason}; it is left out")
    if not tables and not refusals:
        is_in_reach = any(relation.is_in_reach for relation in found.values())
        raise ConfigurationError(*describe_no_tables(config, found.keys(), left_out, is_in_reach=is_in_reach))
    return Catalog(
        tables=tuple(tables),
        refusals=refusals,
        notices=tuple(notices),
        left_out=tuple(left_out),
        absent=() if names else (*absent, *find_left_out(config, known)),
    )


def _choose(
    found: Mapping[str, Relation], config: TablesConfig, names: Sequence[str], replicated: Mapping[str, KnownTable]
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


def _find_own_keys(cursor: Cursor, config: TablesConfig, relations: list[Relation]) -> list[Relation]:
    """Return these relations with the keys that tables.yml names; None where the source has no such unique index."""
    oids = [relation.oid for relation in relations if config.table(relation.name).key]
    if not oids:
        return relations
    cursor.execute(LIST_IDENTIFYING, (oids,))
    indexes = {(oid, frozenset(names)): index for oid, index, names in reversed(cursor.fetchall())}
    return [_with_own_key(relation, config.table(relation.name).key, indexes) for relation in relations]


def _with_own_key(
    relation: Relation, key: tuple[str, ...] | None, indexes: Mapping[tuple[int, frozenset[str]], int]
) -> Relation:
    if not key:
        return relation
    index = indexes.get((relation.oid, frozenset(key)))
    return replace(relation, key=list(key) if index else None, key_index=index, has_key_order=True)


def _read_attributes(cursor: Cursor, oids: Sequence[int]) -> dict[int, list[Attribute]]:
    cursor.execute(LIST_COLUMNS, (list(oids),))
    attributes: dict[int, list[Attribute]] = {}
    for oid, *rest in cursor:
        attributes.setdefault(oid, []).append(Attribute(*rest))
    return attributes


def _read_types(cursor: Cursor, attributes: Mapping[int, Sequence[Attribute]]) -> dict[int, SourceType]:
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


def _describe(
    relation: Relation,
    attributes: Sequence[Attribute],
    types: Mapping[int, SourceType],
    target: TargetTypes,
    config: TablesConfig,
    *,
    orders: KeyOrders,
) -> Table:
    own = config.table(relation.name)
    key = tuple(relation.key or ())
    watermark = next((attribute for attribute in attributes if attribute.name == own.watermark), None)
    masks = own.columns or {}
    sent = [each for each in attributes if each.name not in masks or masks[each.name].kind != "exclude"]
    return Table(
        schema=config.schema,
        name=relation.name,
        oid=relation.oid,
        columns=tuple(
            _describe_column(attribute, types, orders, target, masks.get(attribute.name), is_key=attribute.name in key)
            for attribute in sent
        ),
        key=key,
        watermark=watermark.name if watermark else None,
        watermark_kind=WATERMARK_KINDS[base_type(watermark.formatted)] if watermark else None,
        watermark_sequence=watermark.sequence_oid if watermark else None,
        config=own,
        estimated_rows=max(relation.estimated_rows, 0),
        filenodes=relation.filenodes,
        descendants=relation.descendant_rows,
        has_blocks=relation.has_blocks,
    )


def _describe_column(
    attribute: Attribute,
    types: Mapping[int, SourceType],
    orders: KeyOrders,
    target: TargetTypes,
    mask: Mask | None,
    *,
    is_key: bool,
) -> Column:
    raw = (map_key_type if is_key else map_type)(attribute.type_oid, attribute.formatted, types, target)
    if mask is not None:
        raw_type = "text" if mask.kind in ("hash", "first") else raw.name
        return Column(
            name=attribute.name,
            number=attribute.number,
            source_type=attribute.formatted,
            raw_type=raw_type,
            is_nullable=True,
            is_cast=True,
            is_binary=raw_type == "text" or raw.is_binary,
            mask=mask,
        )
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


def _sign_masks(contents: Mapping[str, str], own: TableConfig, config: TablesConfig) -> Mapping[str, str]:
    """Return what gives the columns of a table their values, with their masks: another mask changes all rows."""
    if not own.columns:
        return contents
    fingerprint = config.mask_key.fingerprint() if config.mask_key else ""
    masks = {
        name: f"{mask.kind} {mask.characters} {mask.constant} {fingerprint if mask.kind == 'hash' else ''}"
        for name, mask in own.columns.items()
        if mask.kind != "exclude"
    }
    return {name: f"{content} {masks[name]}" if name in masks else content for name, content in contents.items()}


def _notices(table: Table, relation: Relation, attributes: Sequence[Attribute], config: TablesConfig) -> Iterator[str]:
    missing = [name for _, name, apart in relation.descendants or () if apart and is_left_out(config, name)]
    if missing:
        yield (
            f"{table.label} lacks the rows of {', '.join(missing)}, which inherit from it and are tables of their own: "
            "tables.yml leaves these out"
        )
    yield from _notices_of_watermark(table, relation, attributes)


def _notices_of_watermark(table: Table, relation: Relation, attributes: Sequence[Attribute]) -> list[str]:
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
