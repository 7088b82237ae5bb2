"""One table at one snapshot, with both of its ends: what loading, merging and reconciling work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from etl.model import Counts
from etl.source.reader import Reader
from etl.target.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The end that is read, the end that is written, and who hears of it."""

    reader: Reader
    writer: Writer
    on_commit: Callable[[Counts], None]
    say: Callable[[str], None]  # a notice about the table
