"""The errors of a run, who has to act on each, and the exit code it leads to.

    EtlError
    ├── ConfigurationError      the caller: arguments, environment or tables.yml    exit 2
    ├── UnavailableError        a database away, or the run lock held               exit 3
    │   └── LockHeldError       another run is at work on this target               exit 3
    └── TableError              one table failed, the others go on                  exit 1
        ├── SourceError         what the source answered
        ├── TargetError         what the target answered
        │   └── RowRefusedError a row that the target cannot hold
        ├── SourceChangedError  the table was truncated or rewritten during the read
        └── TargetChangedError  the raw table was changed during the run

`is_transient` says whether the same call may succeed later.
Messages say what was expected, what was found, where, and the next step; they never hold a password.
"""

from __future__ import annotations


class EtlError(Exception):
    """The root: every failure that the command line reports without a traceback."""

    exit_code = 1
    is_transient = False


class ConfigurationError(EtlError):
    """Wrong usage or configuration; nothing was read or written."""

    exit_code = 2


class UnavailableError(EtlError):
    """The run could not start or go on: a database cannot be reached."""

    exit_code = 3

    def __init__(self, message: str, *, is_transient: bool = False) -> None:
        super().__init__(message)
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
    """At least one row of a statement breaks a constraint or a type of the target."""


class TargetChangedError(TableError):
    """The raw table was changed by somebody while the run was at work; reading anew what it looks like serves."""

    is_transient = True


class SourceChangedError(TableError):
    """The table was truncated or rewritten between the snapshot and the read; a new snapshot serves."""

    is_transient = True
