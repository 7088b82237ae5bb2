"""Decides how a raw table follows the changes of its source table. Pure.

Changes that keep every value exact are made: columns are added, types widened. Others are refused, with the next step.
Begin at `fit_table`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from etl.errors import TableError
from etl.model import MAX_RAW_COLUMNS, META_COLUMNS, Column, SourceIdentity, Table

TableChangeKind = Literal["table_loaded", "table_missing", "table_left_out", "table_returned"]
ChangeKind = Literal["column_added", "column_replaced", "column_widened", "column_dropped"]
# Changes of the source's schema that change the raw table.
MADE: tuple[ChangeKind, ...] = ("column_added", "column_widened")

# Each type holds every value of the types before it.
INTEGERS = ("smallint", "integer", "bigint")
FORMATTED = re.compile(r"(?P<name>[^(]*)(\((?P<modifier>[0-9, -]+)\))?(?P<rest>.*)")
SETS_OF_CHARACTERS = ("character varying", "bit varying")
TIMES = ("timestamp", "time", "interval")


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A raw table as it is now, and what was known of its source table when it was last replicated."""

    types: Mapping[str, str] = field(default_factory=dict)  # of its columns, as format_type() writes them
    key: tuple[str, ...] = ()
    slots: int = 0  # of columns, taken by its columns and by those that were dropped
    is_table: bool = True  # False: somebody has put a view, or another relation, in its place
    loaded_types: Mapping[str, str] = field(default_factory=dict)  # raw types of the source's columns, as loaded
    loaded_numbers: Mapping[str, int] = field(default_factory=dict)  # attnum of the source's columns, as loaded
    has_load: bool = False  # a load of it is unfinished
    rejected_keys: tuple[tuple[str, ...], ...] = ()  # of rows that the target refused, as text

    @property
    def exists(self) -> bool:
        return bool(self.types)


@dataclass(frozen=True, kw_only=True)
class KnownTable:
    """A table that `raw` has, or whose replication began."""

    has_progress: bool  # False: a table of schema raw that the ledger does not know
    oid: int | None = None  # of the source's table when its keys were last compared, unless it was partitioned
    source: SourceIdentity = field(default_factory=SourceIdentity)  # that it was replicated from


@dataclass(frozen=True, kw_only=True)
class SchemaChange:
    """One change of the raw table, or a change of the source table that leaves the raw table as it is."""

    kind: ChangeKind
    column_name: str
    detail: str
    needs_old_rows: bool = False  # rows that are already in `raw` may have other values now


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do before rows can be merged."""

    changes: tuple[SchemaChange, ...] = ()
    faults: tuple[str, ...] = ()  # why the raw table cannot follow; if any, no change is made
    changed_by_owner: tuple[str, ...] = ()  # columns whose raw type the owner of `raw` has changed
    kept_as_text: tuple[str, ...] = ()  # columns whose type the target did not have when they were loaded


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a source table is written into its raw table: in which form, and after which changes."""

    table: Table  # columns whose type the owner of `raw` changed are copied as text
    types: Mapping[str, str]  # of the raw table's columns, before the changes
    changes: tuple[SchemaChange, ...] = ()
    remarks: tuple[str, ...] = ()  # notices for the user

    @property
    def types_after(self) -> dict[str, str]:
        """The types of the source's columns in the raw table, after the changes."""
        made = {change.column_name for change in self.changes if change.kind in MADE}
        return {
            column.name: column.raw_type if column.name in made else self.types.get(column.name, column.raw_type)
            for column in self.table.columns
        }


def fit_new_table(table: Table) -> Fit:
    """Return the fit of a raw table that has just been created, or will be, with the columns of the source table."""
    return Fit(table=table, types={column.name: column.raw_type for column in table.columns})


def fit_table(table: Table, raw: RawTable) -> Fit:
    """Return how a source table is written into its existing raw table.

    If the owner of `raw` changed the type of a column, its values are copied as text and parsed by that type: finer
    values are rounded, and rows that do not fit are rejected. Raises TableError when the raw table cannot hold the
    source's rows, or may not be changed.
    """
    require_table(table, raw)
    plan = plan_changes(table, raw)
    _refuse_changes(table, plan, raw.types)
    columns = tuple(_fit_column(column, plan, raw) for column in table.columns)
    remarks = tuple(
        f'raw.{table.name} has column "{name}" as {raw.types[name]}, which rounds finer values and rejects those that '
        "do not fit"
        for name in plan.changed_by_owner
    )
    remarks += tuple(
        f'raw.{table.name} has column "{name}" as {raw.types[name]}, because the target had no type '
        f"{table.column(name).raw_type} when it was loaded: `etl reset {table.argument}` gives it that type"
        for name in plan.kept_as_text
    )
    return Fit(table=replace(table, columns=columns), types=raw.types, changes=plan.changes, remarks=remarks)


def _fit_column(column: Column, plan: Plan, raw: RawTable) -> Column:
    if column.name in plan.changed_by_owner:
        return replace(column, is_binary=False)
    if column.name in plan.kept_as_text:
        return replace(column, raw_type=raw.types[column.name], is_cast=True, is_binary=True)
    return column


def require_table(table: Table, raw: RawTable) -> None:
    """Raise TableError when another relation has the name of the raw table."""
    if raw.exists and not raw.is_table:
        raise TableError(
            f"expected raw.{table.name} to be a table, found a view or another relation: drop or rename it on the "
            "target, then run again, which loads the table"
        )


def _refuse_changes(table: Table, plan: Plan, types: Mapping[str, str]) -> None:
    faults = list(plan.faults)
    missing = [name for name in META_COLUMNS if name not in types]
    faults += [f'expected column "{name}" in raw, found none' for name in missing]
    if faults:
        raise TableError(
            f"raw.{table.name} does not fit {table.label}: {'; '.join(faults)}; reload it: `etl reset {table.argument}`"
        )
    if plan.changes and table.config.on_schema_change == "freeze":
        raise TableError(
            f"{table.label} has changed, which on_schema_change: freeze forbids: {describe_changes(plan.changes)}; "
            "to apply the changes to raw, set it to evolve in tables.yml"
        )


def plan_changes(table: Table, raw: RawTable) -> Plan:
    """Compare a source table with its raw table; `raw.types` also has the columns that Tidemark adds."""
    changes: list[SchemaChange] = []
    faults: list[str] = []
    changed_by_owner: list[str] = []
    kept_as_text = tuple(
        column.name
        for column in table.columns
        if column.name not in table.key and _stays_text(column, raw.types.get(column.name))
    )
    for column in table.columns:
        found = raw.types.get(column.name)
        if found is None:
            detail = f"added as {column.raw_type}"
            changes.append(_added("column_added", column, detail))
        elif _is_replaced(column, raw):
            detail = "replaced by another column of the same name"
            if found == column.raw_type:
                changes.append(_added("column_replaced", column, detail))
            else:
                faults.append(f'column "{column.name}" was {detail}, with type {column.raw_type} instead of {found}')
        elif found == column.raw_type or column.name in kept_as_text:
            continue
        elif raw.loaded_types.get(column.name) == column.raw_type and column.name in table.key:
            faults.append(f'column "{column.name}" of the key is {found} in raw instead of {column.raw_type}')
        elif raw.loaded_types.get(column.name) == column.raw_type:
            changed_by_owner.append(column.name)
        elif is_widened(found, column.raw_type):
            changes.append(
                SchemaChange(
                    kind="column_widened",
                    column_name=column.name,
                    detail=f"from {found} to {column.raw_type}",
                    needs_old_rows=True,  # ALTER TABLE may have computed new values
                )
            )
        else:
            faults.append(f'column "{column.name}" changed from {found} to {column.raw_type}')
    changes += [
        SchemaChange(kind="column_dropped", column_name=name, detail=_describe_dropped(table, name))
        for name in raw.loaded_types
        if name in raw.types and name not in {column.name for column in table.columns}
    ]
    added = [change.column_name for change in changes if change.kind == "column_added"]
    if added and raw.slots + len(added) > MAX_RAW_COLUMNS:
        faults.append(
            f'raw.{table.name} has no room for column "{added[-1]}": it has {raw.slots:,} columns, including dropped '
            f"ones and those that the source has dropped, and {MAX_RAW_COLUMNS:,} are possible"
        )
    if raw.key != table.key:
        faults.append(f"the key changed from ({', '.join(raw.key) or 'none'}) to ({', '.join(table.key)})")
    return Plan(
        changes=tuple(changes),
        faults=tuple(faults),
        changed_by_owner=tuple(changed_by_owner),
        kept_as_text=kept_as_text,
    )


def _stays_text(column: Column, found: str | None) -> bool:
    """Return whether a column was loaded as text because the target did not have its type, which it has now."""
    is_of_an_extension = "." in column.raw_type
    return is_of_an_extension and found == ("text[]" if column.raw_type.endswith("[]") else "text")


def _describe_dropped(table: Table, name: str) -> str:
    if name not in (table.config.columns or {}):
        return "dropped from the source; raw keeps its values"
    return "excluded in tables.yml; raw keeps its values: drop the column there, or empty it"


def describe_changes(changes: Sequence[SchemaChange]) -> str:
    """Return the changes in one line; a dropped and an added column may be one that was renamed."""
    text = "; ".join(f'column "{change.column_name}" {change.detail}' for change in changes)
    kinds = {change.kind for change in changes}
    note = " (if a column was renamed, its values are copied)" if {"column_added", "column_dropped"} <= kinds else ""
    return text + note


def is_widened(old: str, new: str) -> bool:
    """Return whether the new type holds every value of the old one, so that converting keeps it exact."""
    if old.endswith("[]") and new.endswith("[]"):
        return is_widened(old.removesuffix("[]"), new.removesuffix("[]"))
    if old in INTEGERS:
        return new == "numeric" or new in INTEGERS[INTEGERS.index(old) :]
    (name, limits, rest), (new_name, new_limits, new_rest) = _parse(old), _parse(new)
    if (name, rest) != (new_name, new_rest):
        return (old, new) == ("real", "double precision") or (name, new) == ("character varying", "text")
    if name == "numeric":
        return _holds_numbers(limits, new_limits)
    has_length = name in SETS_OF_CHARACTERS or name.startswith(TIMES)
    return has_length and limits is not None and (new_limits is None or new_limits >= limits)


def _holds_numbers(limits: tuple[int, ...] | None, new_limits: tuple[int, ...] | None) -> bool:
    """Return whether numeric with the new precision and scale holds every number of the old; None means no limits."""
    if limits is None or new_limits is None:
        return new_limits is None
    (precision, scale), (new_precision, new_scale) = (*limits, 0)[:2], (*new_limits, 0)[:2]
    return new_scale >= scale and new_precision - new_scale >= precision - scale


def _added(kind: ChangeKind, column: Column, detail: str) -> SchemaChange:
    return SchemaChange(kind=kind, column_name=column.name, detail=detail, needs_old_rows=True)


def _is_replaced(column: Column, raw: RawTable) -> bool:
    """Return whether raw's column holds another source column that had this name, perhaps dropped long ago."""
    return bool(raw.loaded_numbers) and raw.loaded_numbers.get(column.name) != column.number


def _parse(formatted: str) -> tuple[str, tuple[int, ...] | None, str]:
    """Split "numeric(12,2)" into name, modifiers and what follows them."""
    found = FORMATTED.fullmatch(formatted)
    assert found is not None
    modifier = found["modifier"]
    limits = tuple(int(part) for part in modifier.split(",")) if modifier else None
    return found["name"].strip(), limits, found["rest"].strip()
