"""Load on the source: how many transactions per second pgbench completes while a contender runs.

pgbench's tables are in the same database as the copied ones. Begin at `Load`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.stage import Stage, execute, fetch

SCALE = 100
CLIENTS = 4
WARM_UP_SECONDS = 2.0
# After a checkpoint, the first change of a page logs the whole page: pgbench gets faster until most pages have changed.
FIRST_WARM_UP_SECONDS = 30.0
LONGEST_SECONDS = 3600


class Load:
    """pgbench on one database of the source."""

    def __init__(self, stage: Stage, url: str) -> None:
        self._pgbench, self._url = str(stage.program("pgbench")), url
        subprocess.run([self._pgbench, "-i", "-q", "-s", str(SCALE), url], check=True, capture_output=True)
        execute(self._url, "checkpoint")
        with self.counted():
            time.sleep(FIRST_WARM_UP_SECONDS)

    @contextmanager
    def counted(self) -> Iterator[_Count]:
        """Run pgbench during the block, and count its transactions."""
        command = [self._pgbench, "-c", str(CLIENTS), "-T", str(LONGEST_SECONDS), self._url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(WARM_UP_SECONDS)
            count = _Count(self._url)
            yield count
            count.stop()
        finally:
            process.terminate()
            process.wait()


class _Count:
    """Counts pgbench's transactions by the rows that they add to its history table."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rows, self._started = self._read()
        self.transactions_per_second = 0.0

    def stop(self) -> None:
        rows, ended = self._read()
        self.transactions_per_second = (rows - self._rows) / (ended - self._started)

    def _read(self) -> tuple[int, float]:
        rows = int(fetch(self._url, "select count(*) from pgbench_history")[0][0])
        return rows, time.monotonic()
