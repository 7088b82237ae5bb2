"""Reads what dbt has noted of its builds, in a table of another role, without running anything of that role.

A view, a policy, or an expression of an index would run its owner's functions as the role that reads. So the notes are
read only from a plain table, locked, by COPY, which needs no planner. Begin at `read_built_run`.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError

# The catalog alone is read: to_regclass() fails without the privilege on the schema.
DESCRIBE_BUILDS = """
    select
        pg_catalog.has_schema_privilege(n.oid, 'usage') and pg_catalog.has_table_privilege(c.oid, 'select'),
        pg_catalog.array_remove(array[
            case c.relkind
                when 'r' then null when 'v' then 'a view' when 'm' then 'a materialized view'
                when 'p' then 'a partitioned table' when 'f' then 'a foreign table' else 'no table'
            end,
            case when c.relrowsecurity then 'row-level security' end,
            case when exists (select from pg_catalog.pg_policy as p where p.polrelid = c.oid) then 'policies' end,
            case when c.relkind = 'r' and c.relhasrules then 'rules' end,
            case when exists (
                select from pg_catalog.pg_trigger as t where t.tgrelid = c.oid and not t.tgisinternal
            ) then 'triggers' end,
            case when exists (
                select from pg_catalog.pg_inherits as i where c.oid in (i.inhrelid, i.inhparent)
            ) then 'inheritance' end,
            case when not exists (
                select from pg_catalog.pg_attribute as a
                where a.attrelid = c.oid and a.attname = 'run_id' and not a.attisdropped
                    and a.atttypid = 'pg_catalog.int8'::regtype and a.attgenerated = ''
            ) then 'no plain column run_id of type bigint' end
        ], null)
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'intermediate' and c.relname = 'dbt_builds'
"""


def read_built_run(cursor: Cursor) -> int | None:
    """Return the newest run that every incremental dbt model has read; None before the first build.

    Joins a transaction, in which the notes stay locked against changes of their table. Raises TableError when this role
    may not read them, or when they are not in a plain table.
    """
    if not _may_read(cursor):
        return None
    cursor.execute("lock table intermediate.dbt_builds in access share mode")
    if not _may_read(cursor):  # what is locked may not be what was described
        return None
    cursor.execute("set local row_security = off")
    oldest = _Least()
    cursor.copy_expert("copy intermediate.dbt_builds (run_id) to stdout", oldest)
    return oldest.number


def _may_read(cursor: Cursor) -> bool:
    """Return whether there are notes. Raises TableError when they must not be read."""
    cursor.execute(DESCRIBE_BUILDS)
    found = cursor.fetchone()
    if found is None:
        return False
    is_granted, faults = found
    if faults:
        raise TableError(_describe_faults(faults))
    if not is_granted:
        raise TableError(
            "tombstones cannot be purged, because this role may not read intermediate.dbt_builds, which shows the ones "
            "that dbt has read: run on the target: grant usage on schema intermediate, and select on "
            "intermediate.dbt_builds, to the role of TARGET_DATABASE_URL; or set tombstone_days: null in tables.yml"
        )
    return True


def _describe_faults(faults: Sequence[str]) -> str:
    return (
        "tombstones cannot be purged: expected intermediate.dbt_builds to be a plain table, as dbt creates it, found "
        f"{', '.join(faults)}, which could run functions of its owner as this role: find out who changed it, drop it, "
        "then build all models again (make dbt-run ARGS=--full-refresh)"
    )


class _Least:
    """A file that keeps the least of the numbers that COPY writes to it, one in each line."""

    def __init__(self) -> None:
        self.number: int | None = None

    def write(self, line: bytes) -> int:
        if line.strip() == rb"\N":
            raise TableError("tombstones cannot be purged: intermediate.dbt_builds has a row without run_id: delete it")
        number = int(line)
        self.number = number if self.number is None else min(self.number, number)
        return len(line)
