"""Inspects a source that is not configured yet, and proposes a tables.yml with the reasons.

The catalog does not say which column grows when a row changes, so columns are judged by what it does show: name and
type, a trigger or default that sets the column, its index, the share of NULLs, and whether rows are ever updated. If
something is missing, the proposal includes the statement that adds it. Nothing is written. Begin at `discover`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from etl.config import Settings
from etl.errors import ConfigurationError
from etl.model import MAX_SOURCE_COLUMNS, WatermarkKind
from etl.postgres import sessions
from etl.postgres.catalog_sql import DEFAULT_SEQUENCE, KEY_COLUMNS, LEADS_AN_INDEX, LEAVES, PRIMARY_KEY
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import quote_name
from etl.source.eligibility import KINDS, WATERMARK_KINDS, base_type

# Common names of such a column, the likeliest first.
CHANGED_AT = (
    "updated_at", "modified_at", "changed_at", "last_modified", "last_updated", "last_update", "last_changed",
    "update_date", "updated_on", "modified_on", "modified_date", "date_modified", "updated", "modified", "mtime",
)  # fmt: skip
CREATED_AT = ("created_at", "inserted_at", "created_on", "create_date", "date_created", "created", "occurred_at", "ts")

IS_UNIQUE_ON_ALL_ROWS = "i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null"
LIST_CANDIDATES = f"""
    select
        c.oid, c.relname, c.relkind::text, pg_catalog.obj_description(c.oid, 'pg_class'),
        parts.rows::bigint, parts.bytes::bigint, parts.updates::bigint, pg_catalog.has_table_privilege(c.oid, 'select'),
        pg_catalog.has_schema_privilege(n.oid, 'usage'),
        ({PRIMARY_KEY.format(oid="c.oid")}),
        (
            {KEY_COLUMNS.format(condition=IS_UNIQUE_ON_ALL_ROWS)}
            group by i.indexrelid, i.indnkeyatts
            having count(*) = i.indnkeyatts and bool_and(a.attnotnull)
            order by i.indnkeyatts, i.indexrelid limit 1
        )
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
# What sessions have unless they, their role or their database say otherwise; ours has set its own zone since.
READ_TIME_ZONE = "select reset_val from pg_catalog.pg_settings where name = 'TimeZone'"
WITHOUT_ZONE = (WatermarkKind.TIMESTAMP, WatermarkKind.DATE)
# A column's name as a regular expression that matches nothing else.
ESCAPED = "pg_catalog.regexp_replace(a.attname, '([^[:alnum:]_])', '\\\\\\1', 'g')"
LIST_CANDIDATE_COLUMNS = f"""
    select
        a.attrelid, a.attname, pg_catalog.col_description(a.attrelid, a.attnum),
        pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity <> '' or coalesce(f.expression ~ 'nextval', false),
        coalesce(f.expression ~* 'now\\(\\)|current_|_timestamp\\(\\)', false),
        {LEADS_AN_INDEX},
        (
            select t.tgname
            from pg_catalog.pg_trigger as t
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            where t.tgrelid = a.attrelid and not t.tgisinternal and t.tgenabled in ('O', 'A')
                and t.tgtype & 1 = 1 and t.tgtype & 2 = 2 and t.tgtype & 16 = 16
                and (
                    p.prosrc ~* ('new\\."?' || {ESCAPED} || '"?\\s*:?=')
                    or pg_catalog.encode(t.tgargs, 'escape') ~ ('(^|\\\\000)' || {ESCAPED} || '\\\\000')
                )
            order by t.tgname limit 1
        ),
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
    trigger: str | None  # that sets it when a row is updated
    null_fraction: float | None  # as of the last ANALYZE
    sequence_cache: int | None
    sequence_increment: int | None

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
    columns: tuple[tuple[str, str | None], ...] = ()  # names and comments
    watermark: str | None = None
    time_zone: str | None = None  # in which the watermark is written, if its type has none
    reasons: tuple[str, ...] = ()  # why this watermark, or none
    remedies: tuple[tuple[str, str], ...] = ()  # what is wrong, and the statement that fixes it
    skipped: str | None = None  # why the relation is left out


def discover(settings: Settings, table_names: Sequence[str] = ()) -> tuple[Proposal, ...]:
    """Propose how to replicate the tables of the configured schema, or those named.

    Raises ConfigurationError when the schema has no tables or a name is wrong, UnavailableError when the source
    cannot be reached.
    """
    schema = settings.tables.schema
    connection = sessions.connect_source(settings)
    try:
        with errors_of("source", "reading its catalog"), connection.cursor() as cursor:
            cursor.execute(LIST_CANDIDATES, (schema,))
            relations = {row[1]: row for row in cursor.fetchall()}
            unknown = sorted(set(table_names) - relations.keys())
            if unknown or not relations:
                raise ConfigurationError(
                    f"expected tables {', '.join(unknown) or 'to replicate'} in schema {schema} of the source, found "
                    f"{', '.join(relations) or 'none'}: name another schema with --schema"
                )
            chosen = [relations[name] for name in (table_names or relations)]
            columns = _read_columns(cursor, [row[0] for row in chosen])
            cursor.execute(READ_TIME_ZONE)
            ((zone,),) = cursor.fetchall()
            return tuple(_propose(schema, _Candidate(*row[1:]), columns.get(row[0], []), zone) for row in chosen)
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
    key: list[str] | None
    unique: list[str] | None  # columns that could be the key


def _read_columns(cursor: Cursor, oids: Sequence[int]) -> dict[int, list[SourceColumn]]:
    cursor.execute(LIST_CANDIDATE_COLUMNS, (list(oids),))
    columns: dict[int, list[SourceColumn]] = {}
    for oid, *rest in cursor:
        columns.setdefault(oid, []).append(SourceColumn(*rest))
    return columns


def _propose(schema: str, candidate: _Candidate, columns: Sequence[SourceColumn], zone: str) -> Proposal:
    label = quote_name(schema, candidate.name)
    remedies: list[tuple[str, str]] = []
    skipped = None
    if candidate.kind in KINDS:
        skipped = f"{KINDS[candidate.kind]}: only tables are replicated"
    elif not (candidate.is_readable and candidate.is_in_reach):
        skipped = "it cannot be read"
        if not candidate.is_in_reach:
            remedies.append(("no privilege", f"grant usage on schema {quote_name(schema)} to replicator"))
        if not candidate.is_readable:
            remedies.append(("no privilege", f"grant select on {label} to replicator"))
    elif not candidate.key:
        skipped = "it has no primary key, by which rows are merged"
        remedies.append(("no key", _key_statement(label, candidate)))
    elif len(columns) > MAX_SOURCE_COLUMNS:
        skipped = f"it has {len(columns):,} columns, and raw tables can have {MAX_SOURCE_COLUMNS:,} of them"
    if skipped:
        return Proposal(
            name=candidate.name, rows=candidate.rows, bytes=candidate.bytes, remedies=tuple(remedies), skipped=skipped
        )
    column = _choose(candidate, columns)
    reasons = _reasons(candidate, column, columns)
    if column is not None:
        remedies += _remedies(label, candidate, column, zone)
    return Proposal(
        name=candidate.name,
        rows=candidate.rows,
        bytes=candidate.bytes,
        key=tuple(candidate.key or ()),
        comment=candidate.comment,
        columns=tuple((each.name, each.comment) for each in columns),
        watermark=column.name if column else None,
        time_zone=zone if column is not None and column.kind in WITHOUT_ZONE else None,
        reasons=tuple(reasons),
        remedies=tuple(remedies),
    )


def _choose(candidate: _Candidate, columns: Sequence[SourceColumn]) -> SourceColumn | None:
    """Choose the watermark: a column set by a trigger, or with a common name.

    If no row is ever updated, a column that numbers rows or holds the time of their creation also qualifies.
    """
    times = [column for column in columns if column.kind not in (None, WatermarkKind.INTEGER)]
    kept = [column for column in times if column.trigger]
    if kept:
        return min(kept, key=lambda column: _place(column.name, CHANGED_AT))
    named = [column for column in times if column.name.lower() in CHANGED_AT]
    if named:
        return min(named, key=lambda column: _place(column.name, CHANGED_AT))
    if candidate.updates:
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


def _reasons(candidate: _Candidate, column: SourceColumn | None, columns: Sequence[SourceColumn]) -> list[str]:
    if column is None:
        possible = [each.name for each in columns if each.kind is not None and each.name not in (candidate.key or ())]
        found = f"; candidates by type: {', '.join(possible)}" if possible else ""
        updates = "rows are updated, and " if candidate.updates else ""
        return [f"{updates}no column is known to change with a row, so its row versions tell what is new{found}"]
    reasons = [f"{column.name} is {column.type}"]
    if column.trigger:
        reasons.append(f"trigger {column.trigger} sets it")
    elif column.name.lower() in CHANGED_AT:
        reasons.append("chosen by its name")
    else:
        reasons.append("no row was ever updated, according to the server's counters")
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


def _remedies(label: str, candidate: _Candidate, column: SourceColumn, zone: str) -> list[tuple[str, str]]:
    quoted, remedies = quote_name(column.name), []
    if not column.has_index:
        concurrently = "" if candidate.kind == "p" else "concurrently "
        remedies.append(("each run scans the whole table", f"create index {concurrently}on {label} ({quoted})"))
    if not column.is_not_null:
        remedies.append(
            ("rows without a value are read every run", f"alter table {label} alter column {quoted} set not null")
        )
    is_time = column.kind is not WatermarkKind.INTEGER
    if is_time and not column.trigger and (candidate.updates or column.name.lower() in CHANGED_AT):
        function = quote_name("touch_" + column.name)
        value = _moment(column, zone).replace("'", "''")  # the body is a literal itself
        remedies.append(
            (
                "no trigger sets it, so an update that does not set it is missed until `etl verify`",
                f"create function {function}() returns trigger language plpgsql as "
                f"'begin new.{quoted} := {value}; return new; end'; create trigger {function} "
                f"before insert or update on {label} for each row execute function {function}()",
            )
        )
    return remedies


def _moment(column: SourceColumn, zone: str) -> str:
    """Return the expression of the current time for a column, whatever zone a session has set."""
    local = "now() at time zone " + "'{}'".format(zone.replace("'", "''"))
    if column.kind is WatermarkKind.TIMESTAMPTZ:
        return "now()"
    return local if column.kind is WatermarkKind.TIMESTAMP else f"({local})::date"


def _key_statement(label: str, candidate: _Candidate) -> str:
    columns = ", ".join(map(quote_name, candidate.unique)) if candidate.unique else "..."
    return f"alter table {label} add primary key ({columns})"
