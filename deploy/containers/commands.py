"""`python3 -m deploy.containers COMMAND`: what `make` calls for the containers of docker-compose.yml.

It needs only Docker with its compose plugin and any Python 3, no packages. Begin at `main`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.containers.secret_files import FOLDER, make_secrets

CHECKOUT = Path(__file__).resolve().parents[2]
BACKUPS = "backups"
WAREHOUSE, SUPERUSER, TARGET = "warehouse", "postgres", "target_db"
# A restored warehouse until it is complete, and the replaced one until the restored one has its name.
RESTORED, REPLACED = "warehouse_restored", "warehouse_replaced"
DATABASES = ("source_db", "target_db")
STEPS = ("roles", "seed", "etl", "dbt")
WRITERS = ("airflow-scheduler", "airflow-worker", "simulate")
API_SERVER, API_PORT = "airflow-api-server", "8080"  # within its container
START_SECONDS = "300"
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class ContainersError(Exception):
    """A command cannot be carried out; the message says the next step."""


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
    print(f"{FOLDER}: {len(made)} files created" if made else f"{FOLDER}: nothing to create")


def build_image(_: Sequence[str]) -> None:
    """Build the image of all services except the database servers and Redis; IMAGE names it."""
    make_secrets(CHECKOUT)  # without them, compose refuses docker-compose.yml
    compose("build", "dbt")


def pipeline(_: Sequence[str]) -> None:
    """Build the image, start both databases, and run the pipeline up to the marts, with a container for each step."""
    build_image([])
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *DATABASES)
    for number, step in enumerate(STEPS, 1):
        _say(f"{number}/{len(STEPS)} {step}")
        compose("run", "--rm", "--no-deps", "--no-TTY", step)
    _say("query the marts with: docker compose exec target_db psql -U analyst warehouse")


def up(arguments: Sequence[str]) -> None:
    """Run the pipeline up to the marts, then start Airflow and wait until all its services are healthy."""
    pipeline([])
    _say("starting Airflow (about a minute) ...")
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *arguments, *_lasting_services())
    port = answer("port", API_SERVER, API_PORT).strip().rpartition(":")[2]
    print(f"Airflow: http://localhost:{port}  login admin  password in {FOLDER}/airflow_admin")


def down(_: Sequence[str]) -> None:
    """Stop and remove the containers; keep the data."""
    compose(*ALL_PROFILES, "down", "--remove-orphans")


def clean(_: Sequence[str]) -> None:
    """Remove the containers and all their data, once a person or FORCE=1 has confirmed it; keep secrets and backups."""
    volumes = _list_volumes()
    if volumes and os.environ.get("FORCE") != "1":
        _say(f"this deletes all data of this checkout's containers: {', '.join(volumes)}")
        if not sys.stdin.isatty():
            raise ContainersError("nothing was deleted: confirm it with make compose-clean FORCE=1")
        if input("delete them? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ContainersError("nothing was deleted")
    compose(*ALL_PROFILES, "down", "--remove-orphans", "--volumes")


def back_up(arguments: Sequence[str]) -> None:
    """Dump the warehouse at one snapshot to a file, which is complete or does not exist."""
    folder = CHECKOUT / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = dt.datetime.now(dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")  # noqa: UP017 an older Python may run this
    path = Path(arguments[0]) if arguments else folder / f"{WAREHOUSE}-{stamp}.dump"
    if path.exists():
        raise ContainersError(f"{path} already exists: name another file")
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
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): restore it with make restore FILE={path}")


def restore(arguments: Sequence[str]) -> None:
    """Restore a warehouse from a file next to the present one, and replace that one once it is complete."""
    if not arguments:
        raise ContainersError(
            f"expected a backup to restore, found none: make restore FILE={BACKUPS}/{WAREHOUSE}-....dump"
        )
    path = Path(arguments[0])
    if not path.is_file():
        raise ContainersError(f"{path} does not exist: the backups are in {BACKUPS}/")
    make_secrets(CHECKOUT)
    _refuse_writers()
    compose("up", "--detach", "--wait", "--wait-timeout", START_SECONDS, *DATABASES)
    compose("run", "--rm", "--no-deps", "--no-TTY", "roles")  # the owners of what is restored
    _check_dump(path)
    sql(f"drop database if exists {RESTORED} with (force)", f"create database {RESTORED} template template0")
    with path.open("rb") as file:
        in_target(
            "pg_restore", "--username", SUPERUSER, "--exit-on-error", "--single-transaction", "--dbname", RESTORED,
            stdin=file,
        )  # fmt: skip
    _exchange()
    compose("run", "--rm", "--no-deps", "--no-TTY", "roles")  # the privileges on the database itself
    print(f"{WAREHOUSE} was restored from {path}; the next run replicates what has changed since")


def _exchange() -> None:
    """Replace the present database with the restored one, in one transaction, and drop the present one.

    Terminates the sessions on the present one; if one reconnects in time, nothing changes and psql reports it.
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
    """Raise if something that writes to the warehouse is running: it would write to the database that is replaced."""
    names = answer(*ALL_PROFILES, "ps", "--services", "--status", "running").split()
    found = [name for name in names if name in (*WRITERS, *STEPS)]
    if found:
        raise ContainersError(
            f"{', '.join(found)} could write during the restore: docker compose stop {' '.join(found)}"
        )


def _check_dump(path: Path) -> None:
    """Raise unless pg_restore can read the file's table of contents."""
    with path.open("rb") as file:
        in_target("pg_restore", "--list", stdin=file, stdout=subprocess.DEVNULL)


def in_target(*command: str, **streams: object) -> None:
    """Run a program in the target's container, where it has the server's version."""
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
    """Run docker compose on this checkout. Raises ContainersError when it fails; its output says why."""
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
    # make exports unset variables as empty ones, which would override those of `.env` in compose.
    chosen = {name: value for name, value in os.environ.items() if value}
    options: Mapping[str, object] = {"stdin": subprocess.DEVNULL, "env": chosen, **streams}
    command = ["docker", "compose", *arguments]
    try:
        return subprocess.run(command, cwd=CHECKOUT, check=False, **options)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError as error:
        raise ContainersError("docker is not installed: install Docker with its compose plugin") from error


def _list_volumes() -> list[str]:
    """Return the volumes that exist of this checkout's project."""
    project = json.loads(answer(*ALL_PROFILES, "config", "--format", "json"))["name"]
    label = f"label=com.docker.compose.project={project}"
    command = ["docker", "volume", "ls", "--quiet", "--filter", label]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode:
        raise ContainersError("docker volume ls failed: the lines above say why")
    return listed.stdout.split()


def _lasting_services() -> list[str]:
    """Return the services of the chosen profiles that keep running."""
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
