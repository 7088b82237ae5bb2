"""Servers of a test's own, that others can follow, be copied from, or be promoted."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.local.servers import SUPERUSER, Server, find_binaries, make_private_folder
from tests.integration.etl.faults import open_as_nobody

MAJOR = 16
# wal_level logical serves physical and logical walsenders alike.
SERVER_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "wal_level": "logical",
}


@contextmanager
def serve_new(home: Path, name: str, port: int) -> Iterator[Server]:
    """Run a new server, which others can follow."""
    with serve(Server(name=name, folder=home / name, port=port, major=MAJOR, settings=SERVER_SETTINGS)) as server:
        yield server


@contextmanager
def serve(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def open_program(server: Server, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the server's installation as the server's user, and end it."""
    binary = find_binaries(server.major, server.folder.parent) / "bin" / program
    with open_as_nobody([str(binary), *arguments]) as process:
        yield process


def beside(server: Server, name: str, port: int) -> Server:
    """Return a server for a copy of another one's data, which has its password."""
    found = Server(
        name=name, folder=server.folder.parent / name, port=port, major=server.major, settings=server.settings
    )
    make_private_folder(found.folder)
    (found.folder / "password").write_text(server.password())
    return found


def copy_running(server: Server, name: str, port: int, *arguments: str) -> Server:
    """Copy a server that is running, as a backup does; with -R, the copy is a standby. It is not started."""
    found = beside(server, name, port)
    with open_program(
        server, "pg_basebackup", "-D", str(found.data), "-d", server.url(), "-c", "fast", *arguments
    ) as copying:
        assert copying.wait(60) == 0
    return found


def copy_stopped(server: Server, name: str, port: int) -> Server:
    """Stop a server, copy its data folder, and start it again. The copy is not started."""
    found = beside(server, name, port)
    server.stop()
    with open_as_nobody(["cp", "-a", str(server.data), str(found.data)]) as copying:
        assert copying.wait(60) == 0
    server.start()
    return found


def upgrade(server: Server, major: int, name: str, port: int) -> Server:
    """Copy the data of a stopped server to a server of another version with pg_upgrade. It is not started."""
    found = replace(beside(server, name, port), major=major)
    old, new = (find_binaries(each.major, each.folder.parent) / "bin" for each in (server, found))
    with open_program(
        found, "initdb", "-D", str(found.data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
        "--no-data-checksums",
    ) as making:  # fmt: skip
        assert making.wait(60) == 0
    (server.data / "pg_hba.conf").write_text("local all all trust\n")
    with open_as_nobody([
        "env", "-C", str(found.folder), str(new / "pg_upgrade"), "-U", SUPERUSER, "-s", str(found.folder),
        "-b", str(old), "-B", str(new), "-d", str(server.data), "-D", str(found.data),
    ]) as upgrading:  # fmt: skip
        printed, _ = upgrading.communicate(timeout=300)
        assert upgrading.returncode == 0, printed.decode()
    return found
