"""The errors of a run, who must act on each, and its exit code.

    EtlError
    ├── ConfigurationError      the caller: arguments, environment or tables.yml    exit 2
    ├── UnavailableError        a database is unreachable, or the run lock is held  exit 3
    │   └── LockHeldError       another run is in progress on this target           exit 3
    └── TableError              one table failed, the others continue               exit 1
        ├── SourceError         a statement failed on the source
        ├── TargetError         a statement failed on the target
        │   └── RowRefusedError a row that the target rejects
        ├── SourceChangedError  the table was truncated or rewritten during the read
        └── TargetChangedError  the raw table was changed during the run

`is_transient` says whether a retry may succeed.
Messages say what was expected, what was found, where, and the next step; they never contain a password.
"""

from __future__ import annotations

from etl.text import printable


class EtlError(Exception):
    """The base class of every failure that the command line reports without a traceback.

    Each argument is a line of the message; a name or value in it adds no other line.
    """

    exit_code = 1
    is_transient = False

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args))


class ConfigurationError(EtlError):
    """Wrong usage or configuration; nothing was read or written."""

    exit_code = 2


class UnavailableError(EtlError):
    """The run cannot start or continue: a database cannot be reached."""

    exit_code = 3

    def __init__(self, *lines: str, is_transient: bool = False) -> None:
        super().__init__(*lines)
        self.is_transient = is_transient


class LockHeldError(UnavailableError):
    """Another run holds the lock of this target."""


class TableError(EtlError):
    """One table could not be replicated."""


class _DatabaseError(TableError):
    """A statement failed on one side; `sqlstate` is None when the connection was lost."""

    def __init__(self, message: str, *, sqlstate: str | None, is_transient: bool) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_transient = is_transient


class SourceError(_DatabaseError):
    """A statement failed on the source."""


class TargetError(_DatabaseError):
    """A statement failed on the target."""


class RowRefusedError(TargetError):
    """At least one row of a statement violates a constraint or does not fit a type of the target."""


class TargetChangedError(TableError):
    """Something else changed the raw table during the run; a retry reads its new definition."""

    is_transient = True


class SourceChangedError(TableError):
    """The table was truncated or rewritten between the snapshot and the read; a retry uses a new snapshot."""

    is_transient = True
