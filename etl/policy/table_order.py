"""Decides in which order tables are read that do not share a snapshot: those that refer before those referred to.

A row that is read earlier than its parent can only refer to parents that the later read sees. No I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Reference = tuple[str, str]  # a table with a foreign key, and the table that it refers to


@dataclass(frozen=True, kw_only=True)
class TableOrder:
    """The tables, children before parents."""

    names: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]  # tables that refer to each other, which have no order among themselves


def order_children_first(names: Iterable[str], references: Collection[Reference]) -> TableOrder:
    """Order tables so that each goes before all that it refers to, over any number of references, where that can be.

    A child reaches all that its parent reaches, and itself: more tables than the parent does, unless the parent
    reaches the child as well.
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
    """Return those of the tables that refer to another of them, or to which another refers."""
    pairs = [pair for pair in references if pair[0] != pair[1] and set(pair) <= set(names)]
    return tuple(sorted({name for pair in pairs for name in pair}))


def _reach(start: str, parents: Mapping[str, set[str]]) -> set[str]:
    """Return a table and all to which its references lead."""
    found, waiting = {start}, [start]
    while waiting:
        new = parents[waiting.pop()] - found
        found |= new
        waiting += new
    return found
