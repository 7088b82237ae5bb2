"""Moves the bytes of COPY from one server to the other: values never pass through Python objects. Begin at `stream`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO

from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

# By default psycopg2 reads 8 kB at a time; a pipe holds 64 kB.
CHUNK_BYTES = 1 << 16
CopyOut = Callable[[IO[bytes]], None]


@contextlib.contextmanager
def stream(write: CopyOut) -> Iterator[Stream]:
    """Run `write` in a thread, and yield a stream of what it writes.

    If `write` fails, reading raises an error instead of reaching the end, so a partial stream never looks complete. If
    the block fails, `write` gets a broken pipe. The failure that came first is raised.
    """
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []
    rows = Stream(read_end, failures)

    def feed() -> None:
        file = os.fdopen(write_end, "wb", buffering=CHUNK_BYTES)
        try:
            write(file)
            file.flush()
        except BaseException as error:
            failures.append(error)  # before the reader can see the end of the stream
        with contextlib.suppress(OSError):  # after a broken pipe, the rest of the buffer cannot be written
            file.close()

    feeder = threading.Thread(target=feed, name="copy-out")
    feeder.start()
    try:
        yield rows
    except BaseException:
        os.close(read_end)
        read_end = -1
        feeder.join()
        if rows.has_failed:
            raise failures[0] from None
        raise
    finally:
        if read_end >= 0:
            os.close(read_end)
        feeder.join()


def copy_in(cursor: Cursor, statement: Composable, rows: Stream) -> int:
    """Run a COPY FROM STDIN that reads the rest of a stream; return the number of rows."""
    # copy_expert() calls read(), never readline().
    cursor.copy_expert(statement, rows, CHUNK_BYTES)  # type: ignore[arg-type]
    return cursor.rowcount


class Stream:
    """The reading end of a pipe: counts bytes, and raises an error at the place where the writer failed."""

    def __init__(self, descriptor: int, failures: list[BaseException]) -> None:
        self._descriptor = descriptor
        self._failures = failures
        self._ahead = b""  # received, but not read yet
        self.size = 0
        self.has_failed = False

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return the bytes that are available, at most `size`; empty at the end."""
        limit = size if size > 0 else CHUNK_BYTES
        chunk, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return chunk or self._receive(limit)

    def ends_within(self, size: int) -> bool:
        """Return whether at most `size` bytes are left; they can still be read."""
        while len(self._ahead) <= size:
            chunk = self._receive(CHUNK_BYTES)
            if not chunk:
                return True
            self._ahead += chunk
        return False

    def _receive(self, size: int) -> bytes:
        chunk = os.read(self._descriptor, size)
        if not chunk and self._failures:
            self.has_failed = True
            raise BrokenPipeError("the writer of the stream failed")
        self.size += len(chunk)
        return chunk
