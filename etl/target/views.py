"""Drops the views on a raw table while it is changed, and recreates them as they were.

PostgreSQL refuses to alter a column, or to drop a table, that a view uses. Views, and views on these views, are
recorded with definition, options, owner, grants and comments; what cannot be recorded is refused. Everything happens in
the caller's transaction, so no other session sees it. Begin at `detached_views`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError, TargetChangedError
from etl.postgres.sql import quote_name, read_sql
from etl.postgres.transactions import single

LIST_VIEWS = read_sql(__package__, "list_views")
LIST_GRANTS = """
    select null, g.privilege_type, g.is_grantable, nullif(g.grantee, 0)::regrole::text
    from pg_catalog.pg_class as c
    cross join lateral pg_catalog.aclexplode(c.relacl) as g
    where c.oid = %(oid)s and g.grantee <> c.relowner
    union all
    select a.attname, g.privilege_type, g.is_grantable, nullif(g.grantee, 0)::regrole::text
    from pg_catalog.pg_attribute as a
    cross join lateral pg_catalog.aclexplode(a.attacl) as g
    where a.attrelid = %(oid)s and not a.attisdropped
"""
# The roles to which default privileges granted something on a new relation; its owner keeps its own privileges.
LIST_GRANTEES = """
    select distinct nullif(g.grantee, 0)::regrole::text
    from pg_catalog.pg_class as c
    cross join lateral pg_catalog.aclexplode(c.relacl) as g
    where c.oid = %(oid)s and g.grantee <> c.relowner
"""
# The columns of a table that views read directly.
LIST_COLUMNS_IN_VIEWS = """
    select distinct w.ev_class::regclass::text, a.attname
    from pg_catalog.pg_depend as d
    join pg_catalog.pg_rewrite as w on w.oid = d.objid
    join pg_catalog.pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where d.classid = 'pg_catalog.pg_rewrite'::regclass and d.refclassid = 'pg_catalog.pg_class'::regclass
        and d.refobjid = %(oid)s and d.refobjsubid > 0
    order by 1, 2
"""
LIST_COMMENTS = """
    select a.attname, d.description
    from pg_catalog.pg_description as d
    left join pg_catalog.pg_attribute as a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
    where d.classoid = 'pg_catalog.pg_class'::regclass and d.objoid = %(oid)s
"""
# Below the default of deadlock_timeout.
YIELDING_LOCK_TIMEOUT = "900ms"


@dataclass(frozen=True, kw_only=True)
class View:
    """A view as the catalog describes it."""

    name: sql.Identifier
    owner: str
    definition: str
    options: tuple[str, ...]
    extras: Extras


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One entry of an access list; without a column it is on the whole relation, without a grantee it is to PUBLIC."""

    column: str | None
    privilege: str
    is_grantable: bool
    grantee: str | None  # as regrole writes it


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The grants and comments of a relation."""

    kind: Literal["table", "view"]
    grants: tuple[Grant, ...]  # without the owner's own
    comments: tuple[tuple[str | None, str], ...]  # column or None, and text


@contextmanager
def detached_views(cursor: Cursor, relation: sql.Identifier, label: str) -> Iterator[None]:
    """Drop the views on a table for the length of the block, then recreate them, each as its owner.

    Raises TableError when a view is of a kind that cannot be recreated, or this role may not act as its owner. The wait
    for readers of the views times out before the server looks for a deadlock: the readers continue, and the change is
    tried again.
    """
    views = _list_views(cursor, relation, label)
    if views:
        cursor.execute("set local lock_timeout = %s", (YIELDING_LOCK_TIMEOUT,))
    for view in views:
        with _acting_as(cursor, view.owner):
            cursor.execute(sql.SQL("drop view {}").format(view.name))
    yield
    for view in reversed(views):
        with _acting_as(cursor, view.owner):
            cursor.execute(_create(view))
            give_extras(cursor, view.name, view.extras)


def check_views(cursor: Cursor, relation: sql.Identifier, label: str, columns: Sequence[str]) -> None:
    """Raise TableError when a view on a table could not be recreated on a table with only these columns."""
    _list_views(cursor, relation, label)
    cursor.execute(LIST_COLUMNS_IN_VIEWS, {"oid": _oid_of(cursor, relation)})
    for view, column in cursor.fetchall():
        if column not in columns:
            raise TableError(
                f'reloading {label} would drop column "{column}", which the source no longer has, and {view} reads it: '
                "change or drop the view, then run again"
            )


def read_extras(cursor: Cursor, table: sql.Identifier) -> Extras:
    """Return the grants and comments of a table."""
    return _read_extras(cursor, _oid_of(cursor, table), "table")


def give_extras(cursor: Cursor, relation: sql.Identifier, extras: Extras, columns: Sequence[str] | None = None) -> None:
    """Give a new relation the grants and comments of another, in place of what default privileges granted.

    If `columns` is given, grants and comments on other columns are left out.
    """
    cursor.execute(LIST_GRANTEES, {"oid": _oid_of(cursor, relation)})
    for (grantee,) in cursor.fetchall():
        cursor.execute(sql.SQL("revoke all on table {} from {}").format(relation, sql.SQL(grantee or "public")))
    for grant in extras.grants:
        if columns is None or grant.column is None or grant.column in columns:
            cursor.execute(
                sql.SQL("grant {}{} on table {} to {}{}").format(
                    sql.SQL(grant.privilege),
                    sql.SQL(" ({})").format(sql.Identifier(grant.column)) if grant.column else sql.SQL(""),
                    relation,
                    sql.SQL(grant.grantee or "public"),
                    sql.SQL(" with grant option" if grant.is_grantable else ""),
                )
            )
    for column, text in extras.comments:
        if column is None:
            cursor.execute(sql.SQL("comment on {} {} is {}").format(sql.SQL(extras.kind), relation, sql.Literal(text)))
        elif columns is None or column in columns:
            name = sql.SQL(".").join([relation, sql.Identifier(column)])
            cursor.execute(sql.SQL("comment on column {} is {}").format(name, sql.Literal(text)))


def _list_views(cursor: Cursor, relation: sql.Identifier, label: str) -> list[View]:
    cursor.execute(LIST_VIEWS, {"oid": _oid_of(cursor, relation)})
    found = cursor.fetchall()
    views = []
    for oid, schema, name, kind, owner, definition, options, has_more in found:
        if kind != "v" or has_more:
            what = "a materialized view" if kind == "m" else "a view with triggers, rules or defaults"
            raise TableError(
                f"{label} must be changed, and {schema}.{name}, {what}, reads it and cannot be recreated: drop it, "
                "run again, then create it"
            )
        cursor.execute("select pg_catalog.pg_has_role(%s, 'member')", (owner,))
        if cursor.fetchone() != (True,):
            raise TableError(
                f"{label} must be changed, and {schema}.{name}, which reads it, belongs to {owner}: run on "
                f"the target: grant {quote_name(owner)} to the role of TARGET_DATABASE_URL; or drop the view, run "
                "again, then create it"
            )
        identifier = sql.Identifier(schema, name)
        views.append(
            View(
                name=identifier,
                owner=owner,
                definition=definition,
                options=tuple(options),
                extras=_read_extras(cursor, oid, "view"),
            )
        )
    return views


def _create(view: View) -> sql.Composable:
    options: sql.Composable = sql.SQL("")
    if view.options:
        pairs = [option.partition("=") for option in view.options]
        options = sql.SQL("with ({}) ").format(
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, _, value in pairs
            )
        )
    return sql.SQL("create view {} {}as {}").format(view.name, options, sql.SQL(view.definition))


def _read_extras(cursor: Cursor, oid: int, kind: Literal["table", "view"]) -> Extras:
    cursor.execute(LIST_GRANTS, {"oid": oid})
    grants = tuple(
        Grant(column=column, privilege=privilege, is_grantable=is_grantable, grantee=grantee)
        for column, privilege, is_grantable, grantee in cursor
    )
    cursor.execute(LIST_COMMENTS, {"oid": oid})
    return Extras(kind=kind, grants=grants, comments=tuple(cursor.fetchall()))


def _oid_of(cursor: Cursor, relation: sql.Identifier) -> int:
    cursor.execute("select pg_catalog.to_regclass(%s)::oid", (relation.as_string(cursor),))
    oid: int | None = single(cursor)
    if oid is None:
        name = ".".join(relation.strings)
        raise TargetChangedError(
            f"{name} was dropped or renamed by another session meanwhile: run again, which loads a raw table that is "
            "missing"
        )
    return oid


@contextmanager
def _acting_as(cursor: Cursor, role: str) -> Iterator[None]:
    cursor.execute("select current_user")
    (usual,) = cursor.fetchone() or (role,)
    if usual == role:
        yield
        return
    cursor.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
    yield
    cursor.execute(sql.SQL("set local role {}").format(sql.Identifier(usual)))
