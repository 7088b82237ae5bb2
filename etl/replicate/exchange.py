"""The reader and the writer of one table at one snapshot, which loading, merging and reconciling use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from etl.model import Counts
from etl.source.reader import Reader
from etl.target.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The reader and the writer of one table, and the callbacks that report progress."""

    reader: Reader
    writer: Writer
    on_commit: Callable[[Counts], None]
    say: Callable[[str], None]  # a notice about the table
