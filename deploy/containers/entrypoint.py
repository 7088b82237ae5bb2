"""`python -m deploy.containers.entrypoint PROGRAM ...`: the entry point of every container of the image.

Passwords are mounted as files, one for each role of a server; this writes them to one private file that libpq and
asyncpg read. The URLs for alerts and the key of hashed columns are mounted as files too, and become environment
variables of the program only. So no secret is in an argument or in the output of `docker inspect`. Then the program
replaces this process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECRETS = Path("/run/secrets")
CHECKOUT = Path(__file__).resolve().parents[2]
LOGIN_SECRET, LOGIN = "airflow_admin", "admin"
LOGINS_VARIABLE = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"
ALERTS = {"alert_webhook_url": "ALERT_WEBHOOK_URL", "alert_smtp_url": "ALERT_SMTP_URL"}
VARIABLES = {**ALERTS, "mask_key": "ETL_MASK_KEY"}
USAGE = 2


def main(argv: Sequence[str], environment: Mapping[str, str] = os.environ, secrets: Path = SECRETS) -> int:
    """Write what the program needs, then replace this process with it; return only if it cannot be started."""
    if not argv:
        print("entrypoint: expected a program, such as: etl run", file=sys.stderr)
        return USAGE
    if path := environment.get("PGPASSFILE"):
        write_private(Path(path), "".join(passfile_lines(secrets)))
    if (path := environment.get(LOGINS_VARIABLE)) and (secrets / LOGIN_SECRET).exists():
        # Airflow opens it for writing, so it cannot be the secret itself.
        write_private(Path(path), json.dumps({LOGIN: read_secret(secrets / LOGIN_SECRET)}) + "\n")
    if target := environment.get("DBT_TARGET_PATH"):
        _copy_manifest(Path(target))
    try:
        variables = {**environment, **secret_variables(secrets)}
        os.execvpe(argv[0], list(argv), variables)  # noqa: S606 it replaces this process, so that signals reach it
    except OSError as error:
        print(f"entrypoint: {argv[0]}: {error.strerror}", file=sys.stderr)
    return USAGE


def passfile_lines(secrets: Path) -> Iterator[str]:
    """Yield a line of a libpq password file for each secret named HOST.ROLE."""
    for path in sorted(secrets.glob("*.*")):
        host, _, role = path.name.rpartition(".")
        if host and role and path.is_file():
            yield ":".join(map(_escape, (host, "*", "*", role, read_secret(path)))) + "\n"


def secret_variables(secrets: Path) -> dict[str, str]:
    """Return the variables whose values are secrets, from those files that exist and are not empty."""
    found = {VARIABLES[name]: read_secret(secrets / name).strip() for name in VARIABLES if (secrets / name).is_file()}
    return {variable: value for variable, value in found.items() if value}


def read_secret(path: Path) -> str:
    return path.read_text(encoding="utf-8").rstrip("\r\n")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; libpq ignores any other."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(":", "\\:")


def _copy_manifest(target: Path) -> None:
    """Copy the image's manifest to dbt's target folder, which is empty when the container starts."""
    made = CHECKOUT / "dbt" / "target"
    if made.is_dir() and not target.exists():
        shutil.copytree(made, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
