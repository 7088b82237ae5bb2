"""Translates the driver's errors into ours: which side failed, and whether a retry may help. Begin at `errors_of`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import psycopg2

from etl.errors import EtlError, RowRefusedError, SourceError, TargetError
from etl.model import Side
from etl.postgres.stalls import LockLostError, StalledError

# SQLSTATE classes (appendix A of the manual) after which the same statement may succeed later.
TRANSIENT_CLASSES = ("08", "40", "53")
TRANSIENT_STATES = (
    "55P03",  # lock_not_available
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "25P03",  # idle_in_transaction_session_timeout
)
# SQLSTATE classes of errors that a row causes: data exceptions, constraints, a view's check option, raising triggers.
ROW_CLASSES = ("22", "23", "44", "P0")
ROW_STATES = ("54000",)  # program_limit_exceeded: a value too large for an index
HINTS: Mapping[str, str] = {
    "21000": "keys that differ on the source are equal in raw: compare the types and locales of the key on both sides",
    "42P01": "if it was dropped or renamed meanwhile, run again",
    "42501": "grant the missing privilege to the role (docs/configuration.md)",
    "53100": "free or add disk space on the {side}",
    "53300": "raise max_connections of the {side}, or lower ETL_PARALLEL_TABLES",
    "55P03": "see what holds the lock on the {side} in pg_locks, or raise ETL_LOCK_TIMEOUT_SECONDS",
    "57014": "raise ETL_STATEMENT_TIMEOUT_SECONDS, or find what slows the {side} down",
}
# Functions of the server whose 42501 concerns a policy, not a grant; the message depends on the server's language.
ASKS_POLICIES = ("check_enable_rls", "ExecWithCheckOptions")


@contextlib.contextmanager
def errors_of(side: Side, where: str) -> Iterator[None]:
    """Translate driver errors of one side ("source" or "target"); `where` names the table or the step."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error, side, where) from error


def translate(error: psycopg2.Error, side: Side, where: str) -> EtlError:
    """Return our error for a driver's error, with its text, its SQLSTATE, and whether a retry may help."""
    if isinstance(error, StalledError | LockLostError):
        kind = SourceError if side == "source" else TargetError
        text = f"the session on the {side} was ended: {error}"
        return kind(f"{where}: {text}", sqlstate=None, is_transient=is_transient(error))
    state = error.pgcode
    text = "the connection was lost during COPY" if _is_lost_in_copy(error) else one_line(str(error))
    kind = SourceError if side == "source" else TargetError
    if kind is TargetError and _blames_a_row(state):
        kind = RowRefusedError
    label = f" (SQLSTATE {state})" if state else ""
    hint = f": {HINTS[state].format(side=side)}" if state and state in HINTS else ""
    if state == "42501" and error.diag.source_function in ASKS_POLICIES:  # rows that a policy hides would be missed
        hint = f": alter role ... bypassrls on the {side}, or skip the table in tables.yml"
    return kind(
        f"{where}: the {side} answered: {text or type(error).__name__}{label}{hint}",
        sqlstate=state,
        is_transient=is_transient(error),
    )


def is_transient(error: psycopg2.Error) -> bool:
    """Return whether the same statement may succeed later; a lost connection has no SQLSTATE."""
    if isinstance(error, LockLostError):
        return False
    state = error.pgcode
    if state is None:
        return _is_lost_in_copy(error) or isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
    return state.startswith(TRANSIENT_CLASSES) or state in TRANSIENT_STATES


def _is_lost_in_copy(error: psycopg2.Error) -> bool:
    """Return whether the connection was lost during COPY: psycopg2 then raises its base class, without SQLSTATE."""
    return error.pgcode is None and type(error) is psycopg2.DatabaseError


def refuses_a_row(error: BaseException) -> bool:
    """Return whether the target refused a row, by the driver's error or ours: the session goes on."""
    return isinstance(error, RowRefusedError) or (isinstance(error, psycopg2.Error) and _blames_a_row(error.pgcode))


def _blames_a_row(state: str | None) -> bool:
    return state is not None and (state.startswith(ROW_CLASSES) or state in ROW_STATES)


def one_line(text: str) -> str:
    return " ".join(text.split())
