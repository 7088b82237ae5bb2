"""Decides whether a trigger sets a column to the current time whenever a row is updated. Pure: text in, text out.

The body of a PL/pgSQL function is read for an assignment to `new`, and not understood any further: what could make it
assign only sometimes, or something else, is a doubt. Begin at `find_setter`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
BRANCH = re.compile(r"\b(if|case|loop|while|for|exception|execute)\b", re.IGNORECASE)
MOMENT = re.compile(
    r"\b(now\s*\(|current_(timestamp|date)|localtimestamp|(clock|statement|transaction)_timestamp\s*\()", re.IGNORECASE
)
# A function of PostgreSQL's own, in C, that does nothing else.
KNOWN_FUNCTION = ("c", "moddatetime")


@dataclass(frozen=True)
class Trigger:
    """A trigger that runs before each row is updated."""

    name: str
    language: str
    function: str
    body: str
    has_condition: bool  # WHEN
    has_columns: bool  # UPDATE OF
    arguments: Sequence[str] = ()

    @cached_property
    def code(self) -> str:
        """The body without comments; empty in languages that are not read."""
        return COMMENT.sub("", self.body) if self.language == "plpgsql" else ""


@dataclass(frozen=True, kw_only=True)
class Setter:
    """A trigger that sets a column, and why it may not do so always."""

    name: str
    doubt: str = ""


def find_setter(column_name: str, triggers: Sequence[Trigger]) -> Setter | None:
    """Return the trigger that sets a column, one without a doubt if there is one; None if none is seen to set it."""
    found = []
    for trigger in triggers:
        values = _list_assigned(column_name, trigger)
        if values or column_name in trigger.arguments:
            found.append(Setter(name=trigger.name, doubt=_find_doubt(trigger, values)))
    return min(found, key=lambda setter: bool(setter.doubt), default=None)


def _list_assigned(column_name: str, trigger: Trigger) -> list[str]:
    """Return the expressions that the body assigns to a column of the new row."""
    assignment = rf"\bnew\s*\.\s*\"?{re.escape(column_name)}\"?\s*:?=([^;]*)"
    return re.findall(assignment, trigger.code, re.IGNORECASE)


def _find_doubt(trigger: Trigger, values: Sequence[str]) -> str:
    is_known = (trigger.language, trigger.function) == KNOWN_FUNCTION
    function = f"its function {trigger.function}"
    doubts = {
        "it has a condition": trigger.has_condition,
        "it runs only when certain columns are updated": trigger.has_columns,
        f"{function} is not in PL/pgSQL, which is all that is read": trigger.language != "plpgsql" and not is_known,
        f"{function} is given the name of the column, and may do anything with it": not values and not is_known,
        f"{function} has branches": BRANCH.search(trigger.code) is not None,
        f"{function} assigns something else than the current time": not all(map(MOMENT.search, values)),
    }
    return next((doubt for doubt, holds in doubts.items() if holds), "")
