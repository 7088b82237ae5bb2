"""Moves the bytes of COPY from one server to the other: values never pass through Python objects. Begin at `stream`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO

from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

# psycopg2 asks for 8 kB at a time unless told otherwise; a pipe holds 64 kB.
CHUNK_BYTES = 1 << 16
CopyOut = Callable[[IO[bytes]], None]


@contextlib.contextmanager
def stream(write: CopyOut) -> Iterator[Stream]:
    """Run `write` in a thread, and give what it writes to the block.

    When `write` fails, the block sees an error instead of an end, so that a half stream is never taken for a whole
    one; when the block fails, `write` sees a broken pipe. The first cause is raised.
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
            failures.append(error)  # before the end of the stream can be seen
        with contextlib.suppress(OSError):  # what a broken pipe left in the buffer
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
    """Run a COPY FROM STDIN that takes what is left of a stream; return the number of rows."""
    # It reads, and never by lines.
    cursor.copy_expert(statement, rows, CHUNK_BYTES)  # type: ignore[arg-type]
    return cursor.rowcount


class Stream:
    """The reading end of a pipe: counts bytes, and fails where the writer failed."""

    def __init__(self, descriptor: int, failures: list[BaseException]) -> None:
        self._descriptor = descriptor
        self._failures = failures
        self._ahead = b""  # looked at, and not read yet
        self.size = 0
        self.has_failed = False

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return what there is, up to `size` bytes; nothing at the end."""
        limit = size if size > 0 else CHUNK_BYTES
        chunk, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return chunk or self._receive(limit)

    def ends_within(self, size: int) -> bool:
        """Tell whether no more than so many bytes are left; they stay to be read."""
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
            raise BrokenPipeError("the reading side of the copy failed")
        self.size += len(chunk)
        return chunk
