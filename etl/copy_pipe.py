"""Moves the bytes of COPY from one server to the other: values never pass through Python objects. Begin at `pipe`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import IO

# psycopg2 asks for 8 kB at a time unless told otherwise; a pipe holds 64 kB.
CHUNK_BYTES = 1 << 16
CopyOut = Callable[[IO[bytes]], None]


def pipe(write: CopyOut, read: CopyOut) -> int:
    """Run `write` in a thread and `read` here, joined by a pipe; return the bytes moved.

    When `write` fails, `read` sees an error instead of an end, so that a half stream is never taken for a whole
    one; when `read` fails, `write` sees a broken pipe. The first cause is raised.
    """
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []
    tap = _Tap(read_end, failures)

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
        read(tap)  # type: ignore[arg-type]
    except BaseException:
        os.close(read_end)
        read_end = -1
        feeder.join()
        if tap.has_failed:
            raise failures[0] from None
        raise
    finally:
        if read_end >= 0:
            os.close(read_end)
        feeder.join()
    return tap.size


class _Tap:
    """The reading end of a pipe: counts bytes, and fails where the writer failed."""

    def __init__(self, descriptor: int, failures: list[BaseException]) -> None:
        self._descriptor = descriptor
        self._failures = failures
        self.size = 0
        self.has_failed = False

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        chunk = os.read(self._descriptor, size if size > 0 else CHUNK_BYTES)
        if not chunk and self._failures:
            self.has_failed = True
            raise BrokenPipeError("the reading side of the copy failed")
        self.size += len(chunk)
        return chunk
