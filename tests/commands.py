"""Python commands in processes of their own that need not import dbt again: two seconds less for each. Begin at `run`.

A process that has imported what takes long waits for commands, and forks one for each: it has its own arguments,
environment, folder and files, and ends as any program does. The project's own modules are not imported before that, so
that a command of a copy of the checkout finds those of the copy.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

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


def run(*arguments: str, cwd: Path | str = ".", env: dict[str, str], timeout=600) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` or `python -c SCRIPT ...`; return its exit code and all that it has said."""
    modules = OF_ETL if arguments[:2] == ("-m", "etl") else OF_DBT
    if modules not in _servers:
        _servers[modules] = _Server(modules)
    reading, writing = os.pipe()
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        open(os.devnull, "rb") as nothing,
        os.fdopen(reading) as answer,
    ):
        with os.fdopen(writing, "w") as for_the_answer:
            socket.send_fds(
                _servers[modules].socket,
                [json.dumps({"arguments": arguments, "cwd": os.path.abspath(cwd), "environment": env}).encode()],
                [file.fileno() for file in (nothing, output, errors, for_the_answer)],
            )
        code = _wait(answer, arguments, timeout)
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


def _wait(answer, arguments, timeout):
    """Return the exit code, which is written to the pipe when the process has ended."""
    readable, _, _ = select.select([answer], [], [], timeout)
    assert readable, f"waited {timeout} s for {arguments} to end"
    text = answer.read()
    assert text, f"the process that forks {arguments} has died"
    return int(text)


def close():
    """End the processes that fork."""
    while _servers:
        _servers.popitem()[1].close()
