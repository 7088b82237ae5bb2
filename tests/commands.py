"""Python commands in processes of their own that need not import dbt again: seconds less for each. Begin at `run`.

A process that has imported what takes long waits for commands, and forks one for each: it has its own arguments,
environment, folder and files, and ends as any program does. The project's own modules are not imported before that, so
that a command of a copy of the checkout finds those of the copy.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SERVER = Path(__file__).with_name("command_server.py")
STOP_SECONDS = 20
OF_ETL = ("psycopg2", "rich.progress", "tenacity", "yaml")
OF_DBT = (*OF_ETL, "dbt.cli.main", "dbt.adapters.postgres", "dbt.parser.manifest", "dbt.task.build")


class _Server:
    """The process that forks, and the socket on which it is asked to."""

    def __init__(self, modules):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def close(self):
        self.socket.close()
        self.process.wait(STOP_SECONDS)


_servers: dict[tuple[str, ...], _Server] = {}  # by what they have imported


@dataclass
class Process:
    """A command that has been started."""

    arguments: tuple[str, ...]
    pid: int
    answer: IO[str]  # the pipe to which its exit code is written when it has ended
    stdin: IO[str] | None = None
    stdout: IO[str] | None = None
    code: int | None = None

    def wait(self, timeout: float) -> int:
        """Wait until it has ended; return its exit code."""
        if self.code is None:
            assert self._has_ended(timeout), f"waited {timeout} s for {self.arguments} to end"
            with self.answer as answer:
                text = answer.read()
            assert text, f"the process that forks {self.arguments} has died"
            self.code = int(text)
        return self.code

    def kill(self) -> None:
        """End it as a machine does that loses its power."""
        if self.code is None and not self._has_ended(0):
            os.kill(self.pid, signal.SIGKILL)

    def _has_ended(self, timeout: float) -> bool:
        return bool(select.select([self.answer], [], [], timeout)[0])


def run(*arguments: str, cwd: Path | str = ".", env: dict[str, str], timeout=600) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` or `python -c SCRIPT ...`; return its exit code and all that it has said."""
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        open(os.devnull, "rb") as nothing,
    ):
        code = _fork(arguments, cwd, env, nothing, output, errors).wait(timeout)
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


def start(*arguments: str, cwd: Path | str = ".", env: dict[str, str]) -> Process:
    """Start such a command, to be spoken with; what it writes to standard error is lost."""
    for_it, to_it = os.pipe()
    from_it, of_it = os.pipe()
    with os.fdopen(for_it) as stdin, os.fdopen(of_it, "w") as stdout, open(os.devnull, "w") as nothing:
        return _fork(
            arguments, cwd, env, stdin, stdout, nothing, stdin=os.fdopen(to_it, "w"), stdout=os.fdopen(from_it)
        )


def _fork(arguments, cwd, env, *files, **ours):
    modules = OF_ETL if arguments[:2] == ("-m", "etl") else OF_DBT
    if modules not in _servers:
        _servers[modules] = _Server(modules)
    reading, writing = os.pipe()
    answer = os.fdopen(reading)
    with os.fdopen(writing, "w") as for_the_answer:
        socket.send_fds(
            _servers[modules].socket,
            [json.dumps({"arguments": arguments, "cwd": os.path.abspath(cwd), "environment": env}).encode()],
            [file.fileno() for file in (*files, for_the_answer)],
        )
    pid = answer.readline()
    assert pid, f"the process that forks {arguments} has died"
    return Process(arguments, int(pid), answer, **ours)


def close():
    """End the processes that fork."""
    while _servers:
        _servers.popitem()[1].close()
