"""Describes the tables of the source from pg_catalog, in one set of queries for all of them.

information_schema hides constraints from a role that may only SELECT, so it is not used. Begin at `read_catalog`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import cursor as Cursor

from etl.column_types import SourceType, map_type
from etl.config import TableConfig, TablesConfig
from etl.errors import ConfigurationError
from etl.model import Column, Table, WatermarkKind
from etl.statements import META_COLUMNS

WATERMARK_KINDS = {
    "timestamp with time zone": WatermarkKind.TIMESTAMPTZ,
    "timestamp without time zone": WatermarkKind.TIMESTAMP,
    "date": WatermarkKind.DATE,
    "smallint": WatermarkKind.INTEGER,
    "integer": WatermarkKind.INTEGER,
    "bigint": WatermarkKind.INTEGER,
}

FILENODES = """
    coalesce(
        (
            select string_agg(p.relid::oid || ':' || pg_catalog.pg_relation_filenode(p.relid), ',' order by p.relid)
            from pg_catalog.pg_partition_tree({oid}) as p
            where p.isleaf
        ),
        pg_catalog.pg_relation_filenode({oid})::text,
        ''
    )
"""
LIST_TABLES = f"""
    select
        c.oid, c.relname, c.relkind::text, c.reltuples::bigint,
        (
            select array_agg(a.attname::text order by k.place)
            from pg_catalog.pg_index as i
            cross join unnest(i.indkey::int2[]) with ordinality as k (number, place)
            join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
            where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
        ),
        c.relkind = 'r' and c.relhassubclass,
        pg_catalog.has_table_privilege(c.oid, 'select'),
        {FILENODES.format(oid="c.oid")}
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
    order by c.relname
"""
LIST_COLUMNS = """
    select
        a.attrelid, a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), not a.attnotnull,
        s.seqcache, s.seqincrement
    from pg_catalog.pg_attribute as a
    left join pg_catalog.pg_depend as d
        on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
        and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
        and exists (select from pg_catalog.pg_sequence as q where q.seqrelid = d.objid)
    left join pg_catalog.pg_sequence as s on s.seqrelid = d.objid
    where a.attrelid = any (%s) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum
"""
LIST_TYPES = """
    with recursive used as (
        select unnest(%s::oid[]) as oid
        union
        select r.oid
        from used as u
        join pg_catalog.pg_type as t on t.oid = u.oid
        cross join lateral (values (t.typbasetype), (t.typelem)) as r (oid)
        where r.oid <> 0
    )
    select
        t.oid, pg_catalog.format_type(t.oid, null), t.typtype::text,
        t.typcategory = 'A' and t.typlen = -1, t.typelem,
        t.typbasetype, pg_catalog.format_type(t.typbasetype, t.typtypmod),
        t.typsend <> 0 and t.typreceive <> 0
    from used as u
    join pg_catalog.pg_type as t on t.oid = u.oid
"""
KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The tables that can be replicated, the reasons why others cannot, and what a person should know."""

    tables: tuple[Table, ...]
    refusals: dict[str, str]
    notices: tuple[str, ...]


def read_catalog(cursor: Cursor, config: TablesConfig, known_to_target: Set[str], names: Sequence[str]) -> Catalog:
    """Describe the configured tables; `names`, when given, picks among them.

    Raises ConfigurationError when a name in `names` is neither configured nor found.
    """
    cursor.execute(LIST_TABLES, (config.schema,))
    found = {row[1]: row for row in cursor.fetchall()}
    chosen = _choose(found, config, names)
    rows = [found[name] for name in chosen if name in found]
    columns = _read_columns(cursor, [row[0] for row in rows])
    types = _read_types(cursor, columns)
    refusals = {
        name: f"expected a table {config.schema}.{name} on the source, found none: correct its name in tables.yml, "
        "or remove it there"
        for name in chosen
        if name not in found
    }
    tables, notices = [], []
    for row in rows:
        name = row[1]
        reason = _refuse(row, columns.get(row[0], []), config)
        if reason is None:
            tables.append(_describe(row, columns[row[0]], types, known_to_target, config))
            notices += _notices(tables[-1], config)
        elif name in config.tables or name in names:
            refusals[name] = reason
        elif row[2] in "rp":
            notices.append(f"{reason}; it is left out")
    return Catalog(tables=tuple(tables), refusals=refusals, notices=tuple(notices))


def read_filenodes(cursor: Cursor, oid: int) -> str:
    """Return the identity of a table's files, which TRUNCATE and rewriting DDL change."""
    cursor.execute(f"select {FILENODES.format(oid='%(oid)s::oid')}", {"oid": oid})
    row = cursor.fetchone()
    return str(row[0]) if row else ""


def _choose(found: dict[str, Any], config: TablesConfig, names: Sequence[str]) -> list[str]:
    configured = {name for name, table in config.tables.items() if not table.skip}
    skipped = set(config.tables) - configured
    known = configured | (set(found) - skipped if config.discover else set())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"expected names of tables in schema {config.schema} of the source, found {', '.join(unknown)}; "
            f"known are {', '.join(sorted(known)) or 'none'}"
        )
    return sorted(set(names) or known)


def _read_columns(cursor: Cursor, oids: Sequence[int]) -> dict[int, list[tuple[Any, ...]]]:
    cursor.execute(LIST_COLUMNS, (list(oids),))
    columns: dict[int, list[tuple[Any, ...]]] = {}
    for row in cursor:
        columns.setdefault(row[0], []).append(row)
    return columns


def _read_types(cursor: Cursor, columns: dict[int, list[tuple[Any, ...]]]) -> dict[int, SourceType]:
    oids = sorted({column[2] for rows in columns.values() for column in rows})
    cursor.execute(LIST_TYPES, (oids,))
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
        )
        for oid, name, kind, is_array, element, base, base_name, has_binary in cursor
    }


def _refuse(row: tuple[Any, ...], columns: Sequence[tuple[Any, ...]], config: TablesConfig) -> str | None:
    """Return why a relation cannot be replicated, with the next step; None when it can."""
    _, name, kind, _, key, _, is_readable, _ = row
    label = f"{config.schema}.{name}"
    if kind in KINDS:
        return f"{label} is {KINDS[kind]}: only tables are replicated; name the tables under it"
    if not is_readable:
        return f"{label} cannot be read: run on the source: grant select on {label} to the role of SOURCE_DATABASE_URL"
    if not key:
        return (
            f"{label} has no primary key, by which rows are merged: run on the source: "
            f"alter table {label} add primary key (...); or skip it in tables.yml"
        )
    taken = [column[1] for column in columns if column[1] in META_COLUMNS]
    if taken:
        return f"{label} has a column {taken[0]}, a name that raw tables use: rename it, or skip the table"
    return _refuse_watermark(name, label, columns, config)


def _refuse_watermark(name: str, label: str, columns: Sequence[tuple[Any, ...]], config: TablesConfig) -> str | None:
    watermark = config.table(name).watermark
    column = next((column for column in columns if column[1] == watermark), None)
    if column is None:
        if name in config.watermarks_by_name:
            return f"{label} has no column {watermark!r}, its watermark in tables.yml: name another column, or null"
        return None
    kind = WATERMARK_KINDS.get(_base_type(column[3]))
    if kind is None:
        return (
            f'column "{watermark}" of {label} has type {column[3]}: a watermark column must be a timestamp, a date '
            "or an integer; name another column in tables.yml, or null"
        )
    cache, increment = column[5], column[6]
    if kind is WatermarkKind.INTEGER and (cache, increment) != (1, 1):
        found = "no sequence of its own" if cache is None else f"a sequence with cache {cache}, increment {increment}"
        return (
            f'column "{watermark}" of {label} has {found}: an integer watermark needs numbers handed out in order; '
            "alter its sequence to cache 1 increment by 1, or set watermark: null in tables.yml"
        )
    return None


def _base_type(formatted: str) -> str:
    """Strip the precision: timestamp(3) with time zone is a timestamp with time zone."""
    head, _, rest = formatted.partition("(")
    return head + rest.partition(")")[2] if rest else head


def _describe(
    row: tuple[Any, ...],
    columns: Sequence[tuple[Any, ...]],
    types: dict[int, SourceType],
    known_to_target: Set[str],
    config: TablesConfig,
) -> Table:
    oid, name, _, estimated_rows, key, has_descendants_apart, _, filenodes = row
    own: TableConfig = config.table(name)
    watermark = next((column for column in columns if column[1] == own.watermark), None)
    return Table(
        schema=config.schema,
        name=name,
        oid=oid,
        columns=tuple(_describe_column(column, types, known_to_target) for column in columns),
        key=tuple(key),
        watermark=watermark[1] if watermark else None,
        watermark_kind=WATERMARK_KINDS[_base_type(watermark[3])] if watermark else None,
        time_zone=own.time_zone,
        estimated_rows=max(estimated_rows, 0),
        filenodes=filenodes,
        has_descendants_apart=has_descendants_apart,
        batch_rows=own.batch_rows,
    )


def _describe_column(column: tuple[Any, ...], types: dict[int, SourceType], known_to_target: Set[str]) -> Column:
    _, name, type_oid, formatted, is_nullable, _, _ = column
    raw = map_type(type_oid, formatted, types, known_to_target)
    return Column(
        name=name,
        source_type=formatted,
        raw_type=raw.name,
        is_nullable=is_nullable,
        is_cast=raw.is_cast,
        is_binary=raw.is_binary,
    )


def _notices(table: Table, config: TablesConfig) -> list[str]:
    wanted = config.table(table.name).watermark
    if table.watermark is None and wanted is not None:
        return [f"{table.label} has no column {wanted!r}: the whole table is read each run"]
    return []
