"""`python3 -m deploy.containers COMMAND`: what `make` calls for the containers of docker-compose.yml.

It needs Docker with its compose plugin and any Python 3: no package, and no environment. Begin at `main`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.containers.secret_files import FOLDER, make_secrets

CHECKOUT = Path(__file__).resolve().parents[2]
BACKUPS = "backups"
WAREHOUSE, SUPERUSER, TARGET = "warehouse", "postgres", "target_db"
# Beside the warehouse, until a restored one is whole; then the former one until the new one is in its place.
RESTORED, REPLACED = "warehouse_restored", "warehouse_replaced"
DATABASES = ("source_db", "target_db")
STEPS = ("roles", "seed", "etl", "dbt")
WRITERS = ("airflow-scheduler", "airflow-worker", "simulate")
API_SERVER, API_PORT = "airflow-api-server", "8080"  # within its container
START_SECONDS = "300"
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class ContainersError(Exception):
    """A command cannot be done; the message says the next step."""


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 1 failed, 2 usage."""
    if not argv or argv[0] not in COMMANDS:
        print(f"containers: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    try:
        COMMANDS[argv[0]](argv[1:])
    except (ContainersError, OSError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def make_secret_files(_: Sequence[str]) -> None:
    made = make_secrets(CHECKOUT)
    print(f"{FOLDER}: {len(made)} made" if made else f"{FOLDER}: all there")


def build_image(_: Sequence[str]) -> None:
    """Build the image that all services but the servers run; IMAGE names it."""
    make_secrets(CHECKOUT)  # compose reads no file of services without them
    compose("build", "dbt")


def pipeline(_: Sequence[str]) -> None:
    """Build the image, start both databases, and go the whole way to the marts, a container for each step."""
    build_image([])
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *DATABASES)
    for number, step in enumerate(STEPS, 1):
        _say(f"{number}/{len(STEPS)} {step}")
        compose("run", "--rm", "--no-deps", "--no-TTY", step)
    _say("the marts are in target_db: docker compose exec target_db psql -U analyst warehouse")


def up(arguments: Sequence[str]) -> None:
    """Go the whole way to the marts, then start Airflow, and wait until all of it is at work."""
    pipeline([])
    _say("Airflow (about a minute) ...")
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *arguments, *_lasting_services())
    port = answer("port", API_SERVER, API_PORT).strip().rpartition(":")[2]
    print(f"Airflow: http://localhost:{port}  login admin  password in {FOLDER}/airflow_admin")


def down(_: Sequence[str]) -> None:
    """Stop and remove the containers; the data stay."""
    compose(*ALL_PROFILES, "down", "--remove-orphans")


def clean(_: Sequence[str]) -> None:
    """Remove the containers and all of their data; secrets and backups stay."""
    compose(*ALL_PROFILES, "down", "--remove-orphans", "--volumes")


def back_up(arguments: Sequence[str]) -> None:
    """Write the warehouse, as it is at one moment, to a file; it is there whole or not at all."""
    folder = CHECKOUT / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = dt.datetime.now(dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")  # noqa: UP017 an older Python may run this
    path = Path(arguments[0]) if arguments else folder / f"{WAREHOUSE}-{stamp}.dump"
    if path.exists():
        raise ContainersError(f"{path} is there already: name another file")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            in_target("pg_dump", "--username", SUPERUSER, "--format=custom", WAREHOUSE, stdout=file)
        _check_dump(partial)
        partial.rename(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): bring it back with make restore FILE={path}")


def restore(arguments: Sequence[str]) -> None:
    """Bring a warehouse back from a file, beside the present one, and put it in its place when it is whole."""
    if not arguments:
        raise ContainersError(f"which backup? make restore FILE={BACKUPS}/{WAREHOUSE}-....dump")
    path = Path(arguments[0])
    if not path.is_file():
        raise ContainersError(f"{path} is not there: the backups are in {BACKUPS}/")
    make_secrets(CHECKOUT)
    _refuse_writers()
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *DATABASES)
    compose("run", "--rm", "--no-deps", "--no-TTY", "roles")  # owners of what comes back
    _check_dump(path)
    sql(f"drop database if exists {RESTORED} with (force)", f"create database {RESTORED} template template0")
    with path.open("rb") as file:
        in_target(
            "pg_restore", "--username", SUPERUSER, "--exit-on-error", "--single-transaction", "--dbname", RESTORED,
            stdin=file,
        )  # fmt: skip
    _exchange()
    compose("run", "--rm", "--no-deps", "--no-TTY", "roles")  # what roles may do with the database itself
    print(f"{WAREHOUSE} is as it was in {path}; the next run brings what has changed since")


def _exchange() -> None:
    """Put the restored database in the place of the present one, in one transaction, and drop that.

    Sessions of the present one are ended; where one comes back in time, nothing is exchanged, and psql tells so.
    """
    sql(f"drop database if exists {REPLACED} with (force)")
    psql(
        "--single-transaction",
        f"--command=select pg_terminate_backend(pid) from pg_stat_activity where datname = '{WAREHOUSE}'",
        f"--command=alter database {WAREHOUSE} rename to {REPLACED}",
        f"--command=alter database {RESTORED} rename to {WAREHOUSE}",
    )
    sql(f"drop database {REPLACED} with (force)")


def _refuse_writers() -> None:
    """Raise when something that writes to the warehouse is running: it would go on in the database that is replaced."""
    names = answer(*ALL_PROFILES, "ps", "--services", "--status", "running").split()
    found = [name for name in names if name in (*WRITERS, *STEPS)]
    if found:
        raise ContainersError(f"{', '.join(found)} may write meanwhile: docker compose stop {' '.join(found)}")


def _check_dump(path: Path) -> None:
    """Raise unless pg_restore can read the file's table of contents."""
    with path.open("rb") as file:
        in_target("pg_restore", "--list", stdin=file, stdout=subprocess.DEVNULL)


def in_target(*command: str, **streams: object) -> None:
    """Run a program of the target's container, of the version of its server."""
    compose("exec", "--no-TTY", TARGET, *command, **streams)


def sql(*statements: str) -> None:
    """Run statements as superuser, each in a transaction of its own."""
    psql(*(f"--command={statement}" for statement in statements))


def psql(*arguments: str) -> None:
    """Run psql as superuser, quietly, until the first error."""
    options = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--username", SUPERUSER, "--dbname", "postgres")
    in_target(
        "env", "PGOPTIONS=-c client_min_messages=warning", "psql", *options, *arguments, stdout=subprocess.DEVNULL
    )


def compose(*arguments: str, **streams: object) -> None:
    """Run docker compose on this checkout. Raises ContainersError when it fails; it has told why."""
    finished = _run(arguments, **streams)
    if finished.returncode:
        step = next((argument for argument in arguments if not argument.startswith("-")), "")
        raise ContainersError(f"docker compose {step} ended with {finished.returncode}: the lines above say why")


def answer(*arguments: str) -> str:
    """Return what docker compose prints."""
    finished = _run(arguments, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise ContainersError("docker compose failed: the lines above say why")
    return str(finished.stdout)


def _run(arguments: Sequence[str], **streams: object) -> subprocess.CompletedProcess[str]:
    # make exports variables that nobody has set as empty ones, which would hide those of `.env` from compose.
    chosen = {name: value for name, value in os.environ.items() if value}
    options: Mapping[str, object] = {"stdin": subprocess.DEVNULL, "env": chosen, **streams}
    command = ["docker", "compose", *arguments]
    try:
        return subprocess.run(command, cwd=CHECKOUT, check=False, **options)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError as error:
        raise ContainersError("docker is not installed: install Docker with its compose plugin") from error


def _lasting_services() -> list[str]:
    """Return the services that go on, of the profiles that are chosen."""
    return [name for name in answer("config", "--services").split() if name not in (*STEPS, "airflow-init")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


ALL_PROFILES = ("--profile", "celery", "--profile", "simulate")
COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "secrets": make_secret_files,
    "image": build_image,
    "pipeline": pipeline,
    "up": up,
    "down": down,
    "clean": clean,
    "backup": back_up,
    "restore": restore,
}
