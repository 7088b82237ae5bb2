"""Generates the passwords and keys of the containers, once, a file each. Runs on any Python 3, without packages.

A file named HOST.ROLE is the password of a role on a server. Only the owner can enter the folder; the files in it are
readable by all, because containers mount them with these permissions and run as other users.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path

FOLDER = ".secrets"
VARIABLE = "SECRETS_FOLDER"  # without it, docker-compose.yml stops with a message
PROJECT_VARIABLE = "COMPOSE_PROJECT_NAME"  # what containers and volumes belong to
FIRST_PROJECT = "tidemark"  # of checkouts whose containers were made before each had a name of its own
MASK_KEY = "mask_key"
PASSWORDS = (
    "source_db.postgres",
    "source_db.replicator",
    "target_db.postgres",
    "target_db.loader",
    "target_db.transformer",
    "target_db.analyst",
    "airflow_db.postgres",
    "airflow_db.airflow",
    "airflow_admin",
    "airflow_api_secret",
    "airflow_jwt_secret",
    MASK_KEY,
)
FERNET_KEY = "airflow_fernet_key"
REDIS_CONFIGURATION, BROKER_URL, RESULT_BACKEND = "redis_conf", "celery_broker_url", "celery_result_backend"
# URLs for alerts, which may contain passwords; a person fills them in, and empty files send no alerts.
CHOICES = ("alert_webhook_url", "alert_smtp_url")
READABLE, EDITABLE = 0o444, 0o644
PASSWORD_BYTES = 32  # 64 hexadecimal digits, with no special meaning in a shell, a URL or a server
FERNET_KEY_BYTES = 32


def make_secrets(checkout: Path) -> list[str]:
    """Create the missing files, and name the folder and the checkout in `.env`; return the names of the new files."""
    folder = checkout / FOLDER
    digits = hashlib.sha256(str(checkout.resolve()).encode()).hexdigest()[:8]
    is_older = folder.exists() and not (folder / MASK_KEY).exists()  # made before each checkout had a name of its own
    project = FIRST_PROJECT if is_older else f"{FIRST_PROJECT}-{digits}"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    made = [name for name in PASSWORDS if _write(folder / name, secrets.token_hex(PASSWORD_BYTES))]
    key = base64.urlsafe_b64encode(os.urandom(FERNET_KEY_BYTES)).decode()
    made += [FERNET_KEY] if _write(folder / FERNET_KEY, key) else []
    made += _make_broker(folder)
    made += [name for name in CHOICES if _write(folder / name, "", EDITABLE)]
    _set_unless_set(checkout / ".env", VARIABLE, FOLDER)
    _set_unless_set(checkout / ".env", PROJECT_VARIABLE, project)
    return made


def _make_broker(folder: Path) -> list[str]:
    """Create the three files with Redis's password; if one is missing, replace all, because they must agree."""
    password = secrets.token_hex(PASSWORD_BYTES)
    texts = {
        REDIS_CONFIGURATION: f"requirepass {password}",
        BROKER_URL: f"redis://:{password}@redis:6379/0",
        RESULT_BACKEND: f"redis://:{password}@redis:6379/1",
    }
    if all((folder / name).exists() for name in texts):
        return []
    for name, text in texts.items():
        (folder / name).unlink(missing_ok=True)
        _write(folder / name, text)
    return list(texts)


def _write(path: Path, text: str, mode: int = READABLE) -> bool:
    """Write a file unless it exists; return whether it was missing."""
    if path.exists():
        return False
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(mode)
    partial.rename(path)
    return True


def _set_unless_set(path: Path, variable: str, value: str) -> None:
    """Add the variable to `.env`, which compose reads, unless it is set there; keep all other lines."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not any(line.split("=")[0].strip() == variable for line in lines):
        path.write_text("\n".join([*lines, f"{variable}={value}"]) + "\n", encoding="utf-8")
