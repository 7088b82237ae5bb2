"""Moves the bytes of COPY from one server to the other: values never pass through Python objects. Begin at `stream`."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

from etl.postgres import stalls
from etl.postgres.error_translation import refuses_a_row
from etl.postgres.throttle import Throttle

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
    except BaseException as error:
        if not refuses_a_row(error):  # then nobody needs what the writer waits for
            stalls.end_calls_of(feeder)
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
    with stalls.watch(cursor.connection) as call, call.patient() if call else contextlib.nullcontext():
        rows.call = call
        # copy_expert() calls read(), never readline().
        cursor.copy_expert(statement, rows, CHUNK_BYTES)  # type: ignore[arg-type]
    return cursor.rowcount


def copy_out(cursor: Cursor, statement: Composable, into: IO[bytes], throttle: Throttle | None) -> None:
    """Write the output of a COPY TO STDOUT to a file, no faster than the throttle allows."""
    with stalls.watch(cursor.connection) as call:
        outlet = Outlet(into, call, throttle)
        file = io.BufferedWriter(outlet, CHUNK_BYTES)
        if call:
            call.measure = file.tell  # copy_expert() calls write() for each row
        try:
            cursor.copy_expert(statement, file)
            file.flush()
        except BaseException:
            outlet.is_broken = True  # the rest of the buffer is not written
            raise


class Outlet(io.RawIOBase):
    """Writes chunks to a file; waiting for the throttle or for the reader of the file is no stall of the server."""

    def __init__(self, into: IO[bytes], call: stalls.Call | None, throttle: Throttle | None) -> None:
        self._into = into
        self._call = call
        self._throttle = throttle
        self._size = 0
        self.is_broken = False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        """Return how many bytes were written; the buffer above adds what it holds."""
        return self._size

    def write(self, chunk: Any) -> int:
        size = len(chunk)
        if not self.is_broken:
            with self._call.paused() if self._call else contextlib.nullcontext():
                if self._throttle:
                    self._throttle.take(size)
                self._into.write(chunk)
            self._size += size
        return size


class Stream:
    """The reading end of a pipe: counts bytes, and raises an error at the place where the writer failed."""

    def __init__(self, descriptor: int, failures: list[BaseException]) -> None:
        self._descriptor = descriptor
        self._failures = failures
        self._ahead = b""  # received, but not read yet
        self.call: stalls.Call | None = None  # that sends what is read to a server
        self.size = 0
        self.has_failed = False

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return the bytes that are available, at most `size`; empty at the end."""
        limit = size if size > 0 else CHUNK_BYTES
        chunk, self._ahead = self._ahead[:limit], self._ahead[limit:]
        with self.call.paused() if self.call else contextlib.nullcontext():  # waiting for the writer is no stall
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
