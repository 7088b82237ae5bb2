"""Runs a command of this folder, prints its errors to standard error and turns them into the exit codes of `etl`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import psycopg2

from etl.errors import EtlError
from etl.text import printable

UNAVAILABLE, INTERRUPTED = 3, 130


def run_reported(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code, or the code of the error that ended it."""
    try:
        return command()
    except EtlError as error:
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        return error.exit_code
    except psycopg2.OperationalError as error:
        print(
            f"{name}: {printable(' '.join(str(error).split()))}; check the servers with `make status`", file=sys.stderr
        )
        return UNAVAILABLE
    except KeyboardInterrupt:
        return INTERRUPTED
