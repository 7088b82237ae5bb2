"""Tidemark keeps the raw schemas of a warehouse in step with its source databases.

This package is the Python interface; the command line is `etl.cli`. To run once and print the results::

    import etl

    result = etl.run(etl.load_settings())
    for table in result.tables:
        print(table.table_name, table.status, table.rows_inserted)

`load_settings` reads the environment and tables.yml. Every error is an `EtlError`; `etl.errors` shows the tree.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.commands.discover import Proposal, discover
    from etl.commands.run import run
    from etl.commands.status import TableStatus, read_status
    from etl.commands.verify import verify
    from etl.compare.verdict import Verdict
    from etl.config import Settings, load_settings, load_source_settings
    from etl.errors import ConfigurationError, EtlError, LockHeldError, TableError, UnavailableError
    from etl.model import RunOptions
    from etl.results import Event, RunResult, TableResult

__all__ = [
    "ConfigurationError",
    "EtlError",
    "Event",
    "LockHeldError",
    "Proposal",
    "RunOptions",
    "RunResult",
    "Settings",
    "TableError",
    "TableResult",
    "TableStatus",
    "UnavailableError",
    "Verdict",
    "discover",
    "load_settings",
    "load_source_settings",
    "read_status",
    "run",
    "verify",
]

__version__ = "0.1.0"

_MODULES = {
    "commands.discover": ("Proposal", "discover"),
    "commands.run": ("run",),
    "commands.status": ("TableStatus", "read_status"),
    "commands.verify": ("verify",),
    "compare.verdict": ("Verdict",),
    "config": ("Settings", "load_settings", "load_source_settings"),
    "errors": ("ConfigurationError", "EtlError", "LockHeldError", "TableError", "UnavailableError"),
    "model": ("RunOptions",),
    "results": ("Event", "RunResult", "TableResult"),
}
_HOMES = {name: f"etl.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing one module does not load the driver and YAML."""
    if name not in _HOMES:
        raise AttributeError(f"module 'etl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
