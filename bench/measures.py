"""Runs one command and measures it: seconds, processor time of client and servers, peak memory of its processes.

Begin at `measure`. Reads /proc, so Linux only.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local.servers import Server

CHECKOUT = Path(__file__).parents[1]
PROC = Path("/proc")
# Memory is sampled often at first, for short commands, then less and less often, so that long ones are not slowed.
FIRST_SAMPLE_SECONDS = 0.005
LAST_SAMPLE_SECONDS = 0.1
SAMPLE_GROWTH = 1.1
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KIBIBYTE = 1024
ERROR_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one command used."""

    seconds: float  # from its start to its end, as a whole process
    client_cpu_seconds: float  # of the command and all processes that it started
    source_cpu_seconds: float  # of all processes of that server during the command
    target_cpu_seconds: float
    peak_memory_bytes: int  # of the command and its processes together; what they share is counted once
    error: str | None = None  # the end of its standard error, if it failed


def measure(command: str, environment: Mapping[str, str], source: Server, target: Server) -> Measurement:
    """Run a bash command to its end, in the checkout, and measure it."""
    cpu_before = server_cpu_seconds(source), server_cpu_seconds(target)
    with tempfile.TemporaryFile() as errors, tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(command)  # for many tables, it is longer than an argument may be
        script.flush()
        started = time.monotonic()
        process = subprocess.Popen(  # every part of the command is quoted where it is composed
            ["/bin/bash", "-o", "pipefail", script.name],
            env=environment,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        memory = _MemoryWatch(process.pid)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        memory.stop()
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    return Measurement(
        seconds=seconds,
        client_cpu_seconds=usage.ru_utime + usage.ru_stime,
        source_cpu_seconds=server_cpu_seconds(source) - cpu_before[0],
        target_cpu_seconds=server_cpu_seconds(target) - cpu_before[1],
        peak_memory_bytes=memory.peak_bytes,  # not ru_maxrss, which includes what this process had when it forked
        error=f"exit code {process.returncode}: {text[-ERROR_CHARACTERS:]}" if process.returncode else None,
    )


def server_cpu_seconds(server: Server) -> float:
    """Return the processor time that a server has used, including its ended sessions."""
    postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    ticks = sum(_cpu_ticks(pid, with_ended=pid == postmaster) for pid in _tree(postmaster))
    return ticks / TICKS_PER_SECOND


class _MemoryWatch(threading.Thread):
    """Samples the memory of a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stopped = pid, threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        pause_seconds = FIRST_SAMPLE_SECONDS
        while not self._stopped.wait(pause_seconds):
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, _tree(self._pid))))
            pause_seconds = min(pause_seconds * SAMPLE_GROWTH, LAST_SAMPLE_SECONDS)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and of its present descendants."""
    yield pid
    with suppress(OSError):  # it has ended
        for thread in (PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def _memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process: shared pages are divided among the processes that share them."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * KIBIBYTE
    return 0


def _cpu_ticks(pid: int, *, with_ended: bool) -> int:
    """Return the user and system time of a process, with that of its ended children if `with_ended`."""
    with suppress(OSError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # the name may contain spaces
        return sum(map(int, fields[11 : 15 if with_ended else 13]))
    return 0
