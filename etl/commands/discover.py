"""Inspects a source that is not configured yet, and proposes a tables.yml with the reasons.

The catalog does not say which column grows when a row changes, so columns are judged by what it does show: name and
type, a trigger or default that sets the column, its index, the share of NULLs, and whether rows are ever updated. If
something is missing, the proposal includes the statement that adds it. Nothing is written. Begin at `discover`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from psycopg2.extensions import cursor as Cursor

from etl.commands import remedies
from etl.commands.remedies import Remedy
from etl.config import BYTES_PER_MB, Settings
from etl.errors import ConfigurationError
from etl.model import MAX_SOURCE_COLUMNS, WatermarkKind
from etl.policy.triggers import Setter, Trigger, find_setter
from etl.postgres import sessions
from etl.postgres.catalog_sql import DEFAULT_SEQUENCE, DESCENDANTS, IDENTIFYING_COLUMNS, LEADS_AN_INDEX, LEAVES
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import quote_name, read_sql
from etl.source.eligibility import KINDS, WATERMARK_KINDS, Descendant, base_type, find_lost, names_read_with
from etl.source.lost_tables import describe_empty_schema

# Common names of such a column, the likeliest first.
CHANGED_AT = (
    "updated_at", "modified_at", "changed_at", "last_modified", "last_updated", "last_update", "last_changed",
    "update_date", "updated_on", "modified_on", "modified_date", "date_modified", "updated", "modified", "mtime",
)  # fmt: skip
CREATED_AT = ("created_at", "inserted_at", "created_on", "create_date", "date_created", "created", "occurred_at", "ts")

LIST_CANDIDATES = f"""
    select
        c.oid, c.relname, c.relkind::text, pg_catalog.obj_description(c.oid, 'pg_class'),
        parts.rows::bigint, parts.bytes::bigint, parts.updates::bigint, pg_catalog.has_table_privilege(c.oid, 'select'),
        pg_catalog.has_schema_privilege(n.oid, 'usage'),
        exists (select from pg_catalog.pg_index as i where i.indrelid = c.oid and i.indisprimary),
        (
            select k.names from pg_catalog.pg_index as u cross join lateral ({IDENTIFYING_COLUMNS}) as k (names)
            where u.indrelid = c.oid order by u.indisprimary desc, u.indnkeyatts, u.indexrelid limit 1
        ),
        {DESCENDANTS}
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    cross join lateral (
        select coalesce(sum(greatest(l.reltuples, 0)), 0) as rows,
            coalesce(sum(pg_catalog.pg_total_relation_size(l.oid)), 0) as bytes,
            coalesce(sum(pg_catalog.pg_stat_get_tuples_updated(l.oid)), 0) as updates
        from ({LEAVES.format(oid="c.oid")}) as l
    ) as parts
    where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
    order by c.relname
"""
# A scan of so much takes about 20 ms, as long as the rest of a table's turn in a run.
SCAN_UP_TO_MB = 8
# With fewer days of counting, no update says nothing.
LEAST_DAYS = 14
READ_SERVER = read_sql(__package__, "read_server")
LIST_TRIGGERS = read_sql(__package__, "list_triggers")
WITHOUT_ZONE = (WatermarkKind.TIMESTAMP, WatermarkKind.DATE)
LIST_CANDIDATE_COLUMNS = f"""
    select
        a.attrelid, a.attname, pg_catalog.col_description(a.attrelid, a.attnum),
        pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity <> '' or coalesce(f.expression ~ 'nextval', false),
        coalesce(f.expression ~* 'now\\(\\)|current_|_timestamp\\(\\)', false),
        {LEADS_AN_INDEX},
        s.null_frac,
        q.seqcache, q.seqincrement
    from pg_catalog.pg_attribute as a
    join pg_catalog.pg_class as c on c.oid = a.attrelid
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    left join pg_catalog.pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    -- A default refers to no column. Given its table, the server would list all columns of it, for each default.
    left join lateral (
        select case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, 0) end as expression
    ) as f on true
    left join pg_catalog.pg_stats as s on s.schemaname = n.nspname and s.tablename = c.relname and s.attname = a.attname
        and not s.inherited = (c.relkind = 'r')
    left join lateral ({DEFAULT_SEQUENCE}) as q on true
    where a.attrelid = any (%s) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum
"""


@dataclass(frozen=True)
class SourceColumn:
    """One column, as LIST_CANDIDATE_COLUMNS returns it."""

    name: str
    comment: str | None
    type: str
    is_not_null: bool
    is_numbered: bool  # by a sequence
    is_stamped: bool  # its default is the current time
    has_index: bool
    null_fraction: float | None  # as of the last ANALYZE
    sequence_cache: int | None
    sequence_increment: int | None
    setter: Setter | None = None

    @property
    def trigger(self) -> str | None:
        """The trigger that is sure to set it when a row is updated."""
        return self.setter.name if self.setter and not self.setter.doubt else None

    @property
    def kind(self) -> WatermarkKind | None:
        return WATERMARK_KINDS.get(base_type(self.type))

    @property
    def is_in_order(self) -> bool:
        return (self.sequence_cache, self.sequence_increment) == (1, 1)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What is proposed for one relation of the source."""

    name: str
    rows: int  # estimated
    bytes: int
    comment: str | None = None
    key: tuple[str, ...] = ()
    is_key_unique_index: bool = False  # not the primary key
    columns: tuple[tuple[str, str | None], ...] = ()  # names and comments
    watermark: str | None = None
    time_zone: str | None = None  # in which the watermark is written, if its type has none
    reasons: tuple[str, ...] = ()  # why this watermark, or none
    remedies: tuple[Remedy, ...] = ()  # what is wrong, and the statement that fixes it
    skipped: str | None = None  # why the relation is left out


def discover(
    settings: Settings, table_names: Sequence[str] = (), *, scan_up_to_mb: int = SCAN_UP_TO_MB
) -> tuple[Proposal, ...]:
    """Propose how to replicate the tables of the configured schema, or those named.

    A table of up to `scan_up_to_mb` megabytes is read by its row versions, whatever columns it has: a scan of it costs
    little, and a column can lie. Raises ConfigurationError when the schema has no tables or a name is wrong,
    UnavailableError when the source cannot be reached.
    """
    schema = settings.tables.schema
    connection = sessions.connect_source(settings)
    try:
        with errors_of("source", "reading its catalog"), connection.cursor() as cursor:
            cursor.execute(LIST_CANDIDATES, (schema,))
            relations = {row[1]: row for row in cursor.fetchall()}
            if not relations:
                raise ConfigurationError(f"{describe_empty_schema(cursor, schema)}; name one of them with --schema")
            unknown = ", ".join(sorted(set(table_names) - relations.keys()))
            if unknown:
                raise ConfigurationError(
                    f"expected tables {unknown} in schema {schema} of the source, found {', '.join(relations)}"
                )
            chosen = [relations[name] for name in (table_names or relations)]
            columns = _read_columns(cursor, [row[0] for row in chosen])
            parents = {name: row[1] for row in relations.values() for name in names_read_with(schema, row[-1])}
            server = _read_server(cursor, scan_up_to_mb)
            return tuple(
                _propose(schema, _Candidate(*row[1:]), columns.get(row[0], []), server, parents.get(row[1]))
                for row in chosen
            )
    finally:
        connection.close()


@dataclass(frozen=True)
class _Candidate:
    """A row of LIST_CANDIDATES, without the oid."""

    name: str
    kind: str
    comment: str | None
    rows: int
    bytes: int
    updates: int
    is_readable: bool
    is_in_reach: bool  # the role may use the schema
    has_primary_key: bool
    key: list[str] | None  # columns of the primary key, or of a unique index
    descendants: list[Descendant] | None


@dataclass(frozen=True)
class _Server:
    """What holds for all tables of the source."""

    time_zone: str
    days_counted: int  # since when the counters of rows count
    scan_up_to_mb: int

    @property
    def has_counted(self) -> bool:
        return self.days_counted >= LEAST_DAYS


def _read_server(cursor: Cursor, scan_up_to_mb: int) -> _Server:
    cursor.execute(READ_SERVER)
    ((zone, days),) = cursor.fetchall()
    return _Server(time_zone=zone, days_counted=days, scan_up_to_mb=scan_up_to_mb)


def _read_columns(cursor: Cursor, oids: Sequence[int]) -> dict[int, list[SourceColumn]]:
    triggers: dict[int, list[Trigger]] = {}
    cursor.execute(LIST_TRIGGERS, {"oids": list(oids)})
    for oid, *rest in cursor:
        triggers.setdefault(oid, []).append(Trigger(*rest))
    columns: dict[int, list[SourceColumn]] = {}
    cursor.execute(LIST_CANDIDATE_COLUMNS, (list(oids),))
    for oid, *rest in cursor:
        column = SourceColumn(*rest)
        setter = find_setter(column.name, triggers.get(oid, ())) if column.kind else None
        columns.setdefault(oid, []).append(replace(column, setter=setter))
    return columns


def _propose(
    schema: str, candidate: _Candidate, columns: Sequence[SourceColumn], server: _Server, parent: str | None
) -> Proposal:
    label = quote_name(schema, candidate.name)
    found: list[Remedy] = []
    skipped = None
    if candidate.kind in KINDS:
        skipped = f"{KINDS[candidate.kind]}: only tables are replicated"
    elif parent:
        skipped = f"its rows are read with {schema}.{parent}, from which it inherits"
    elif not (candidate.is_readable and candidate.is_in_reach):
        skipped = "it cannot be read"
        found += remedies.grant_access(
            schema, label, is_in_reach=candidate.is_in_reach, is_readable=candidate.is_readable
        )
    elif not candidate.key:
        skipped = "it has no key, by which rows are merged: no unique index over NOT NULL columns"
        found.append(remedies.add_key(label))
    elif len(columns) > MAX_SOURCE_COLUMNS:
        skipped = f"it has {len(columns):,} columns, and raw tables can have {MAX_SOURCE_COLUMNS:,} of them"
    elif lost := find_lost(candidate.descendants):
        skipped = f"some of its descendants are tables of their own, and others cannot be: {', '.join(lost)}"
    if skipped:
        return Proposal(
            name=candidate.name, rows=candidate.rows, bytes=candidate.bytes, remedies=tuple(found), skipped=skipped
        )
    column = None
    if candidate.bytes <= server.scan_up_to_mb * BYTES_PER_MB:
        reasons = [f"up to {server.scan_up_to_mb} MB, a scan costs little: its row versions tell what is new"]
    else:
        column = _choose(candidate, columns, server)
        reasons = _reasons(candidate, column, columns, server)
    if column is not None:
        found += _fix(schema, candidate, column, server)
    return Proposal(
        name=candidate.name,
        rows=candidate.rows,
        bytes=candidate.bytes,
        key=tuple(candidate.key or ()),
        is_key_unique_index=not candidate.has_primary_key,
        comment=candidate.comment,
        columns=tuple((each.name, each.comment) for each in columns),
        watermark=column.name if column else None,
        time_zone=server.time_zone if column is not None and column.kind in WITHOUT_ZONE else None,
        reasons=tuple(reasons),
        remedies=tuple(found),
    )


def _choose(candidate: _Candidate, columns: Sequence[SourceColumn], server: _Server) -> SourceColumn | None:
    """Choose the watermark: a column set by a trigger, or with a common name.

    If no row was ever updated, a column that numbers rows or holds the time of their creation also qualifies.
    """
    times = [column for column in columns if column.kind not in (None, WatermarkKind.INTEGER)]
    kept = [column for column in times if column.trigger]
    if kept:
        return min(kept, key=lambda column: _place(column.name, CHANGED_AT))
    named = [column for column in times if column.name.lower() in CHANGED_AT]
    if named:
        return min(named, key=lambda column: _place(column.name, CHANGED_AT))
    if candidate.updates or not server.has_counted:
        return None
    created = [column for column in times if column.name.lower() in CREATED_AT and column.is_stamped]
    numbered = [
        column
        for column in columns
        if column.kind is WatermarkKind.INTEGER
        and column.is_numbered
        and column.is_in_order
        and candidate.key == [column.name]
    ]
    by_place = sorted(created, key=lambda column: _place(column.name, CREATED_AT))
    return next(iter([*numbered, *by_place]), None)


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name.lower()) if name.lower() in names else len(names)


def _reasons(
    candidate: _Candidate, column: SourceColumn | None, columns: Sequence[SourceColumn], server: _Server
) -> list[str]:
    doubts = [
        f"trigger {each.setter.name} may set {each.name} only sometimes: {each.setter.doubt}"
        for each in columns
        if each.setter and each.setter.doubt and column in (None, each)
    ]
    if column is None:
        possible = [each.name for each in columns if each.kind is not None and each.name not in (candidate.key or ())]
        found = f"; candidates by type: {', '.join(possible)}" if possible else ""
        updates = "rows are updated, and " if candidate.updates else ""
        young = f"the server has counted updates for less than {LEAST_DAYS} days"
        return [
            f"{updates}no column is known to change with a row, so its row versions tell what is new{found}",
            *([] if candidate.updates or server.has_counted else [young]),
            *doubts,
        ]
    reasons = [f"{column.name} is {column.type}"]
    if column.trigger:
        reasons.append(f"trigger {column.trigger} sets it")
    elif column.name.lower() in CHANGED_AT:
        reasons += ["chosen by its name", *doubts]
    else:
        reasons.append(f"no row was updated in the {server.days_counted:,} days that the server has counted")
    if column.is_stamped:
        reasons.append("its default is the current time")
    reasons.append("indexed" if column.has_index else "not indexed")
    if column.is_not_null:
        reasons.append("never NULL")
    elif column.null_fraction is not None:
        reasons.append(f"{column.null_fraction:.0%} NULL")
    else:
        reasons.append("may be NULL; ANALYZE has not counted how often")
    return reasons


def _fix(schema: str, candidate: _Candidate, column: SourceColumn, server: _Server) -> Iterator[Remedy]:
    """Yield what makes a watermark column reliable and cheap."""
    label, zone = quote_name(schema, candidate.name), server.time_zone
    if column.kind is None:
        return
    if not column.has_index:
        yield remedies.index_column(label, column.name, is_partitioned=candidate.kind == "p")
    if not column.is_not_null:
        has_nulls = column.null_fraction != 0
        yield from remedies.forbid_null(label, column.name, column.kind, zone, has_nulls=has_nulls)
    is_time = column.kind is not WatermarkKind.INTEGER
    if is_time and not column.trigger and (candidate.updates or column.name.lower() in CHANGED_AT):
        yield from remedies.stamp_column(schema, label, column.name, column.kind, zone)
