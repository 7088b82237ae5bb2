"""Names the tables in the making, keys and indexes that Tidemark creates, so that no source table can clash with them.

Tables in the making are in schema `etl`, where no raw table is. In schema `raw`, keys and indexes have names made of a
hash, which also suits long table names. If a source table has such a name, the index makes room for it.
Begin at `make_room`.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError
from etl.model import OWN_PREFIX, OWN_SCHEMA, RAW_SCHEMA
from etl.postgres.sql import quote_name

HASH_DIGITS = 32
IndexKind = Literal["key", "run"]  # of the primary key, and of _etl_run_id
# An index that has the name of a raw table: its own table, and what it is for; NULL if Tidemark did not create it.
FIND_INDEX = r"""
    select
        c.relname,
        case
            when not exists (
                select from pg_catalog.pg_attribute as a
                where a.attrelid = c.oid and a.attname = '_etl_run_id' and not a.attisdropped
            ) then null
            when i.indisprimary then 'key'
            when pg_catalog.pg_get_indexdef(i.indexrelid)
                ~ ' USING btree \(_etl_run_id\)( WHERE \(_etl_run_id > .*\))?$' then 'run'
        end
    from pg_catalog.pg_index as i
    join pg_catalog.pg_class as c on c.oid = i.indrelid
    where i.indexrelid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
"""
# Whether a relation of schema raw has this name, other than an index of this raw table.
IS_TAKEN = """
    select exists (
        select from pg_catalog.pg_class as c
        left join pg_catalog.pg_index as i on i.indexrelid = c.oid
        where c.oid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
            and i.indrelid is distinct from pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %s::text))
    )
"""
# A table in the making of an older release, which had them in schema raw; not one that is replicated under this name.
IS_OLD_LOADING = """
    select pg_catalog.to_regclass(pg_catalog.format('etl.%%I', c.relname)) is null
    from pg_catalog.pg_class as c
    where c.oid = pg_catalog.to_regclass(pg_catalog.format('raw.%%I', %(name)s::text))
        and c.relkind = 'r' and c.relowner = current_user::regrole
        and not exists (select from etl.watermarks as w where w.table_name = c.relname)
"""


def loading_table(table_name: str) -> sql.Identifier:
    """Name the table that a load in ranges fills until it is complete.

    The name depends only on that of the table, so that a load is also found after the table was recreated.
    """
    return sql.Identifier(OWN_SCHEMA, _loading_name(table_name))


def name_index(cursor: Cursor, kind: IndexKind, table_name: str) -> str:
    """Return a name for an index of a raw table, free in schema raw unless an index of this table has it."""
    name = f"{OWN_PREFIX}{kind}_{_hash(table_name)}"
    cursor.execute(IS_TAKEN, (name, table_name))
    return _random_name(kind) if cursor.fetchone() == (True,) else name


def make_room(cursor: Cursor, table_name: str) -> None:
    """Rename an index of Tidemark that has the name of a raw table to be created.

    Raises TableError when somebody else created the index.
    """
    cursor.execute(FIND_INDEX, (table_name,))
    found = cursor.fetchone()
    if found is None:
        return
    owner, kind = found
    if kind is None:
        raise TableError(
            f"raw.{table_name} cannot be created, because an index of raw.{owner} has its name: rename the index, "
            f"then run again; run on the target: alter index {quote_name(RAW_SCHEMA, table_name)} rename to ..."
        )
    name = name_index(cursor, kind, owner)
    cursor.execute(
        sql.SQL("alter index {} rename to {}").format(
            sql.Identifier(RAW_SCHEMA, table_name),
            sql.Identifier(_random_name(kind) if name == table_name else name),
        )
    )


def move_to_raw(table_name: str) -> sql.Composable:
    """Give a complete table its place and name; on the way it has a name that neither schema has."""
    passing = _random_name("moving")
    return sql.SQL(
        "alter table {loading} rename to {passing};"
        " alter table {passing_in_own} set schema {raw};"
        " alter table {passing_in_raw} rename to {name}"
    ).format(
        loading=loading_table(table_name),
        passing=sql.Identifier(passing),
        passing_in_own=sql.Identifier(OWN_SCHEMA, passing),
        raw=sql.Identifier(RAW_SCHEMA),
        passing_in_raw=sql.Identifier(RAW_SCHEMA, passing),
        name=sql.Identifier(table_name),
    )


def has_loading_table(cursor: Cursor, table_name: str) -> bool:
    """Return whether a table is in the making; one that an older release has begun is moved to its new place."""
    name = _loading_name(table_name)
    cursor.execute(IS_OLD_LOADING, {"name": name})
    if cursor.fetchone() == (True,):
        cursor.execute(
            sql.SQL("alter table {} set schema {}").format(sql.Identifier(RAW_SCHEMA, name), sql.Identifier(OWN_SCHEMA))
        )
    cursor.execute("select pg_catalog.to_regclass(pg_catalog.format('etl.%%I', %s::text)) is not null", (name,))
    return cursor.fetchone() == (True,)


def _loading_name(table_name: str) -> str:
    return f"{OWN_PREFIX}loading_{_hash(table_name)}"


def _hash(table_name: str) -> str:
    return hashlib.sha256(table_name.encode()).hexdigest()[:HASH_DIGITS]


def _random_name(kind: str) -> str:
    return f"{OWN_PREFIX}{kind}_{secrets.token_hex(HASH_DIGITS // 2)}"
