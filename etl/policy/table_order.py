"""Decides the order of tables that are read at different snapshots: children before the parents they refer to. Pure.

A child row is read before its parents, so the later read of the parents sees all that it refers to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Reference = tuple[str, str]  # a table with a foreign key, and the table that it refers to


@dataclass(frozen=True, kw_only=True)
class TableOrder:
    """The tables, children before parents."""

    names: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]  # tables that refer to each other, so they have no valid order


def order_children_first(names: Iterable[str], references: Collection[Reference]) -> TableOrder:
    """Order tables so that each precedes all tables that it refers to, directly or through others, where possible.

    Tables that reach more tables come first: a child reaches all that its parent reaches, and itself, so it reaches
    more than the parent, unless the parent also reaches the child.
    """
    known = set(names)
    parents: dict[str, set[str]] = {name: set() for name in known}
    for child, parent in references:
        if child in known and parent in known:
            parents[child].add(parent)
    reached = {name: _reach(name, parents) for name in known}
    cycles = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in known}
    return TableOrder(
        names=tuple(sorted(known, key=lambda name: (-len(reached[name]), name))),
        cycles=tuple(sorted(cycle for cycle in cycles if len(cycle) > 1)),
    )


def related_tables(names: Collection[str], references: Iterable[Reference]) -> tuple[str, ...]:
    """Return the tables that refer to another one of them, or that another one refers to."""
    pairs = [pair for pair in references if pair[0] != pair[1] and set(pair) <= set(names)]
    return tuple(sorted({name for pair in pairs for name in pair}))


def _reach(start: str, parents: Mapping[str, set[str]]) -> set[str]:
    """Return a table and all tables that it refers to, directly or through others."""
    found, waiting = {start}, [start]
    while waiting:
        new = parents[waiting.pop()] - found
        found |= new
        waiting += new
    return found
