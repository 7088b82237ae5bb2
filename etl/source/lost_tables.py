"""Finds out what has become of tables that were replicated and are not found any more, and of a schema without tables.

pg_catalog shows every relation, also those that this role may not read. So a table is said to be missing only when
there is none of its name. Begin at `find_out`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg2.extensions import cursor as Cursor

from etl.config import TablesConfig
from etl.model import SourceIdentity
from etl.policy.schema_changes import KnownTable, TableChangeKind
from etl.policy.source_identity import AT_FORMER_SOURCE, describe_other, is_other
from etl.postgres.sql import quote_name

MAX_SCHEMAS = 10  # to list in a message
MAX_REASONS = 5
LIST_PARTITIONS = """
    select c.relname, pn.nspname || '.' || p.relname
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_inherits as i on i.inhrelid = c.oid
    join pg_catalog.pg_class as p on p.oid = i.inhparent
    join pg_catalog.pg_namespace as pn on pn.oid = p.relnamespace
    where n.nspname = %s and c.relispartition and c.relkind in ('r', 'p', 'f')
"""
LIST_BY_OID = """
    select c.oid::bigint, n.nspname, c.relname
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.oid = any (%s::oid[]) and c.relkind in ('r', 'p') and not c.relispartition
"""
LIST_SCHEMAS = """
    select n.nspname, bool_or(n.nspname = %s)
    from pg_catalog.pg_namespace as n
    left join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relkind in ('r', 'p') and not c.relispartition
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and (c.oid is not null or n.nspname = %s)
    group by n.nspname
    order by count(c.oid) desc, n.nspname
"""


@dataclass(frozen=True, kw_only=True)
class AbsentTable:
    """A table that was replicated and no longer is: it is not on the source, or is left out on purpose."""

    name: str
    kind: TableChangeKind  # table_missing or table_left_out
    detail: str  # what has happened, in words


def find_out(
    cursor: Cursor, source: SourceIdentity, schema: str, known: Mapping[str, KnownTable], names: Collection[str]
) -> tuple[dict[str, str], tuple[AbsentTable, ...]]:
    """Return why those of these tables cannot be read that exist, and what has happened to the others.

    None of `names` is an ordinary table, view or foreign table of the schema. What another source lacks is not lost.
    """
    if not names:
        return {}, ()
    cursor.execute(LIST_PARTITIONS, (schema,))
    parents = dict(cursor.fetchall())
    oids = {name: known[name].oid for name in names if name in known}
    cursor.execute(LIST_BY_OID, ([oid for oid in oids.values() if oid is not None],))
    places = {oid: (its_schema, name) for oid, its_schema, name in cursor}
    refusals, absent = {}, []
    for name in sorted(names):
        label, oid = f"{schema}.{name}", oids.get(name)
        place = places.get(oid)
        before = known[name].source if name in known else SourceIdentity()
        if is_other(replace(before, schema=source.schema), source):
            refusals[name] = (
                f"{label} is not on the source: {describe_other(name, before, source)}: {AT_FORMER_SOURCE}, or skip "
                f"{name} in tables.yml"
            )
        elif name in parents:
            refusals[name] = (
                f"{label} is now a partition of {parents[name]}, whose rows include its own: replicate that one, and "
                f"skip {name} in tables.yml"
            )
        elif place is not None and place[0] != schema:
            refusals[name] = (
                f"{label} is not on the source, and the table that raw.{name} was loaded from is {'.'.join(place)}: "
                f"correct `schema:` in tables.yml, move the table back, or skip {name} in tables.yml"
            )
        else:
            renamed = f"renamed to {'.'.join(place)}" if place else ""
            what = renamed or ("dropped or renamed" if oid is None else "dropped")
            detail = f"there is no table {label} on the source any more: it was {what}"
            absent.append(AbsentTable(name=name, kind="table_missing", detail=detail))
    return refusals, tuple(absent)


def find_left_out(config: TablesConfig, known: Mapping[str, KnownTable]) -> tuple[AbsentTable, ...]:
    """Return the tables that were replicated and that tables.yml leaves out now."""
    return tuple(
        AbsentTable(name=name, kind="table_left_out", detail=f"{config.schema}.{name} is left out in tables.yml")
        for name in sorted(known)
        if known[name].has_progress and is_left_out(config, name)
    )


def is_left_out(config: TablesConfig, name: str) -> bool:
    """Return whether tables.yml leaves out a table of the schema."""
    return config.table(name).skip or not (config.discover or name in config.tables)


def describe_no_tables(
    config: TablesConfig, found: Collection[str], reasons: Sequence[str], *, is_in_reach: bool
) -> list[str]:
    """Describe in lines why none of the relations of a schema is replicated; `reasons` are those of its tables."""
    expected = f"expected tables to replicate in schema {config.schema} of the source, found none"
    if all(is_left_out(config, name) for name in found):
        return [f"{expected}: tables.yml leaves out all {len(found)}: list tables there, or set discover: true"]
    if not is_in_reach:
        return [
            f"{expected} that can be read: run on the source: grant usage on schema {quote_name(config.schema)} to the "
            "role of SOURCE_DATABASE_URL, and grant select on its tables"
        ]
    more = [f"... and {len(reasons) - MAX_REASONS} more"] if len(reasons) > MAX_REASONS else []
    listed = [*reasons[:MAX_REASONS], *more] or ["it has views and foreign tables only"]
    return [f"{expected} that can be replicated", *listed]


def describe_empty_schema(cursor: Cursor, schema: str) -> str:
    """Describe a schema in which no relation is found: whether it exists, and where tables are instead."""
    cursor.execute(LIST_SCHEMAS, (schema, schema))
    found = dict(cursor.fetchall())
    others = [name for name, is_this in found.items() if not is_this]
    more = f", and {len(others) - MAX_SCHEMAS} more" if len(others) > MAX_SCHEMAS else ""
    listed = ", ".join(others[:MAX_SCHEMAS]) + more
    state = "has no tables" if schema in found else "does not exist"
    return (
        f"expected tables in schema {schema} of the source, found none: that schema {state}; schemas with tables: "
        f"{listed or 'none'}"
    )
