"""Limits how fast rows are read from the source, over all tables read at the same time. Begin at `Throttle`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """A rate in bytes per second that threads share; each thread waits until its bytes are within the rate."""

    def __init__(
        self,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._due = clock()  # when all bytes taken so far are within the rate

    def take(self, size: int) -> None:
        """Wait until `size` more bytes are within the rate; unused time is not saved up."""
        with self._lock:
            now = self._clock()
            self._due = max(self._due, now) + size / self._bytes_per_second
            wait = self._due - now
        self._sleep(wait)
