"""Programs of a server's installation, run as the user that the server runs as."""

import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deploy.local.servers import UNPRIVILEGED_USER, Server, find_binaries


@contextmanager
def open_program(server: Server, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the server's installation as the server's user, and end it."""
    binary = find_binaries(server.major, server.folder.parent) / "bin" / program
    with open_as_nobody([str(binary), *arguments]) as process:
        yield process


@contextmanager
def open_as_nobody(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    user = pwd.getpwnam(UNPRIVILEGED_USER) if os.getuid() == 0 else None
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    process = subprocess.Popen(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **identity
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
