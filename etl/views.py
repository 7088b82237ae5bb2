"""Takes the views off a raw table while it is changed, and puts them back as they were.

PostgreSQL refuses to alter a column, or to drop a table, that a view uses. Views are recorded with their definition,
options, owner, grants and comments, those on views as well; what cannot be recorded is refused. Everything happens
in the caller's transaction, so that nobody sees it. Begin at `detached_views`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError

# Views that read a relation, directly or through others; those at a larger depth first.
LIST_VIEWS = """
    with recursive readers as (
        select %(oid)s::oid as oid, 0 as depth
        union
        select w.ev_class, r.depth + 1
        from readers as r
        join pg_catalog.pg_depend as d
            on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = r.oid
            and d.classid = 'pg_catalog.pg_rewrite'::regclass
        join pg_catalog.pg_rewrite as w on w.oid = d.objid and w.ev_class <> r.oid
    )
    select
        c.oid, n.nspname, c.relname, c.relkind::text, pg_catalog.pg_get_userbyid(c.relowner),
        pg_catalog.pg_get_viewdef(c.oid), coalesce(c.reloptions, '{}'),
        exists (
            select from pg_catalog.pg_trigger as t where t.tgrelid = c.oid and not t.tgisinternal
            union all
            select from pg_catalog.pg_rewrite as w where w.ev_class = c.oid and w.rulename <> '_RETURN'
            union all
            select from pg_catalog.pg_attrdef as f where f.adrelid = c.oid
        )
    from readers as r
    join pg_catalog.pg_class as c on c.oid = r.oid
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where r.depth > 0
    group by c.oid, n.nspname
    order by max(r.depth) desc, c.oid
"""
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
LIST_COMMENTS = """
    select a.attname, d.description
    from pg_catalog.pg_description as d
    left join pg_catalog.pg_attribute as a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
    where d.classoid = 'pg_catalog.pg_class'::regclass and d.objoid = %(oid)s
"""


@dataclass(frozen=True, kw_only=True)
class View:
    """A view as the catalog has it."""

    name: sql.Identifier
    owner: str
    definition: str
    options: tuple[str, ...]
    extras: tuple[sql.Composable, ...]  # grants and comments


@contextmanager
def detached_views(cursor: Cursor, relation: sql.Identifier, label: str) -> Iterator[None]:
    """Drop the views on a table for the length of the block, and make them again, each as its owner.

    Raises TableError when a view is of a kind that cannot be made again, or this role may not act as its owner.
    """
    views = _list_views(cursor, relation, label)
    for view in views:
        with _acting_as(cursor, view.owner):
            cursor.execute(sql.SQL("drop view {}").format(view.name))
    yield
    for view in reversed(views):
        with _acting_as(cursor, view.owner):
            cursor.execute(_create(view))
            for extra in view.extras:
                cursor.execute(extra)


def table_extras(cursor: Cursor, relation: sql.Identifier) -> list[sql.Composable]:
    """Return the statements that give a table of this name the grants and comments that it has now."""
    return _extras(cursor, _oid_of(cursor, relation), "table", relation)


def _list_views(cursor: Cursor, relation: sql.Identifier, label: str) -> list[View]:
    cursor.execute(LIST_VIEWS, {"oid": _oid_of(cursor, relation)})
    found = cursor.fetchall()
    views = []
    for oid, schema, name, kind, owner, definition, options, has_more in found:
        if kind != "v" or has_more:
            what = "a materialized view" if kind == "m" else "a view with triggers, rules or defaults"
            raise TableError(
                f"{label} has to be changed, and {schema}.{name}, {what}, reads it and cannot be made again: drop it, "
                "run again, then create it"
            )
        cursor.execute("select pg_catalog.pg_has_role(%s, 'member')", (owner,))
        if cursor.fetchone() != (True,):
            raise TableError(
                f"{label} has to be changed, and {schema}.{name}, which reads it, belongs to {owner}: run on the "
                f'target: grant "{owner}" to the role of TARGET_DATABASE_URL; or drop the view, run again, then make it'
            )
        identifier = sql.Identifier(schema, name)
        views.append(
            View(
                name=identifier,
                owner=owner,
                definition=definition,
                options=tuple(options),
                extras=tuple(_extras(cursor, oid, "view", identifier)),
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


def _extras(cursor: Cursor, oid: int, kind: str, name: sql.Identifier) -> list[sql.Composable]:
    statements: list[sql.Composable] = []
    cursor.execute(LIST_GRANTS, {"oid": oid})
    for column, privilege, is_grantable, grantee in cursor.fetchall():
        statements.append(
            sql.SQL("grant {}{} on table {} to {}{}").format(
                sql.SQL(privilege),
                sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL(""),
                name,
                sql.SQL(grantee or "public"),
                sql.SQL(" with grant option" if is_grantable else ""),
            )
        )
    cursor.execute(LIST_COMMENTS, {"oid": oid})
    for column, text in cursor.fetchall():
        what = sql.SQL("column {}.{}").format(name, sql.Identifier(column)) if column else sql.SQL(f"{kind} ") + name
        statements.append(sql.SQL("comment on {} is {}").format(what, sql.Literal(text)))
    return statements


def _oid_of(cursor: Cursor, relation: sql.Identifier) -> int:
    cursor.execute("select pg_catalog.to_regclass(%s)::oid", (relation.as_string(cursor),))
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


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
