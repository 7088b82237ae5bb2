"""Composes the conditions and sort orders by which keys and watermarks are compared. No I/O.

Built-in types are compared by plain operators and rows of them, which index scans use. Other types are compared by the
operators of the key's index, written with their schemas: on the source as `Column.key_order` says, and in `raw` as
`Column.raw_equality` says. A watermark column always has a built-in type.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import sql

from etl.keys.orders import COMPARISONS
from etl.model import Column, QualifiedName, Table
from etl.postgres.sql import comma


def source_column(name: str) -> sql.Identifier:
    """Name a column of the source table, always with its alias: in ORDER BY, a bare name means an output column."""
    return sql.Identifier("s", name)


def typed(table: Table, name: str, value: str) -> sql.Composable:
    """Compose a value, given as text, in the type of a source column."""
    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(table.column(name).source_type))


def as_text(column: Column, value: sql.Composable, *, is_source: bool = True) -> sql.Composable:
    """Compose the text of a value that is not NULL, as COPY writes it.

    concat() uses the output function of the type; a cast to text may be user-defined.
    """
    is_plain = not column.has_own_cast if is_source else column.raw_equality is None
    return sql.SQL("{}::text" if is_plain else "pg_catalog.concat({})").format(value)


def ordered(table: Table, names: Sequence[str]) -> sql.Composable:
    """Compose the list of ORDER BY for these columns."""
    return comma(_sorted(table.column(name)) for name in names)


def follows(
    table: Table, names: Sequence[str], rows: Sequence[sql.Composable], values: Sequence[str]
) -> sql.Composable:
    """Compose the condition that a row with the values `rows` follows one with `values`, in the order of `names`."""
    columns = [table.column(name) for name in names]
    others = [typed(table, name, value) for name, value in zip(names, values, strict=True)]
    if all(column.key_order is None for column in columns):
        return sql.SQL("({}) > ({})").format(comma(rows), comma(others))
    return _follows(columns, rows, others)


def are_equal(
    table: Table, names: Sequence[str], rows: Sequence[sql.Composable], values: Sequence[str]
) -> sql.Composable:
    """Compose the condition that these values of the source are equal."""
    return sql.SQL(" and ").join(
        _compare(table.column(name), row, "=", typed(table, name, value))
        for name, row, value in zip(names, rows, values, strict=True)
    )


def is_among(
    table: Table, keys: Sequence[tuple[str, ...]], *, is_source: bool = True, alias: str = "s"
) -> sql.Composable:
    """Compose the condition that the key of a row of this alias is one of these, given as text.

    One array per column is quick to plan. unnest() takes arrays and composite values apart, so keys that may contain
    them are listed one by one. IN looks operators up by name, so it does not serve keys with operators of their own.
    """
    columns = [table.column(name) for name in table.key]
    types = [column.source_type if is_source else column.raw_type for column in columns]
    names = comma(sql.Identifier(alias, name) for name in table.key)
    if any(column.key_order if is_source else column.raw_equality for column in columns):
        return _is_among_values(columns, types, keys, is_source=is_source, alias=alias)
    if any(column.is_cast or column.raw_type.endswith("[]") for column in columns):
        return sql.SQL("({}) in ({})").format(names, _listed(types, keys))
    arrays = comma(
        sql.SQL("{}::{}[]").format(sql.Literal([key[place] for key in keys]), sql.SQL(name))
        for place, name in enumerate(types)
    )
    return sql.SQL("({}) in (select * from unnest({}))").format(names, arrays)


def same_key(table: Table, one: str, other: str) -> sql.Composable:
    """Compose the condition that the rows of two aliases have the same key, on the target."""
    return sql.SQL(" and ").join(
        _equal(table.column(name), sql.Identifier(one, name), sql.Identifier(other, name)) for name in table.key
    )


def _is_among_values(
    columns: Sequence[Column], types: Sequence[str], keys: Sequence[tuple[str, ...]], *, is_source: bool, alias: str
) -> sql.Composable:
    aliases = [f"key{place}" for place in range(len(columns))]
    pairs = [
        (column, sql.Identifier(alias, column.name), sql.Identifier("v", other))
        for column, other in zip(columns, aliases, strict=True)
    ]
    return sql.SQL("exists (select from (values {}) as v ({}) where {})").format(
        _listed(types, keys),
        comma(map(sql.Identifier, aliases)),
        sql.SQL(" and ").join(
            _compare(column, one, "=", other) if is_source else _equal(column, one, other)
            for column, one, other in pairs
        ),
    )


def _listed(types: Sequence[str], keys: Sequence[tuple[str, ...]]) -> sql.Composable:
    value = sql.SQL("{}::{}")
    rows = (
        comma(value.format(sql.Literal(part), sql.SQL(name)) for part, name in zip(key, types, strict=True))
        for key in keys
    )
    return comma(sql.SQL("({})").format(row) for row in rows)


def _follows(
    columns: Sequence[Column], rows: Sequence[sql.Composable], values: Sequence[sql.Composable]
) -> sql.Composable:
    """Compare column by column; the first condition is one that an index scan can begin with."""
    column, row, value = columns[0], rows[0], values[0]
    is_greater = _compare(column, row, ">", value)
    if len(columns) == 1:
        return is_greater
    return sql.SQL("({} and ({} or {}))").format(
        _compare(column, row, ">=", value), is_greater, _follows(columns[1:], rows[1:], values[1:])
    )


def _compare(column: Column, one: sql.Composable, name: str, other: sql.Composable) -> sql.Composable:
    """Compare two values by what stands for `name` in the order of a source column."""
    order = column.key_order
    if order is None:
        return sql.SQL("{} {} {}").format(one, sql.SQL(name), other)
    if order.operators is None:
        return sql.SQL("row({})::record operator(pg_catalog.{}) row({})::record").format(one, sql.SQL(name), other)
    found = _operator(order.operators[COMPARISONS.index(name)])
    return sql.SQL("{} {} {}").format(_operand(column, one), found, _operand(column, other))


def _operand(column: Column, value: sql.Composable) -> sql.Composable:
    order = column.key_order
    if order is not None and order.operand_type is not None:
        value = sql.SQL("{}::{}").format(value, sql.SQL(order.operand_type))
    if order is not None and order.collation is not None:
        collation = sql.Identifier(order.collation.schema, order.collation.name)
        value = sql.SQL("({} collate {})").format(value, collation)
    return value


def _sorted(column: Column) -> sql.Composable:
    order, name = column.key_order, source_column(column.name)
    if order is None or order.operators is None:
        return name
    return sql.SQL("{} using {}").format(_operand(column, name), _operator(order.operators[0]))


def _equal(column: Column, one: sql.Composable, other: sql.Composable) -> sql.Composable:
    """Compose the condition that two values of a raw key column are equal, as the key's index compares them."""
    equality = sql.SQL("=") if column.raw_equality is None else _operator(column.raw_equality)
    return sql.SQL("{} {} {}").format(one, equality, other)


def _operator(name: QualifiedName) -> sql.Composable:
    """Name an operator with its schema; its name consists of operator characters."""
    return sql.SQL("operator({}.{})").format(sql.Identifier(name.schema), sql.SQL(name.name))
