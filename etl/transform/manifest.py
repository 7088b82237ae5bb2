"""The manifest from which Airflow draws a task for each model: where it is, and whether it is that of the models.

dbt writes it when somebody asks for it (`make manifest`), never when a DAG file is read: that takes seconds. It bears
a fingerprint of the project's files, so that one that is not of their state is known, and refused.
Begin at `find_manifest`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from etl.errors import ConfigurationError

PROJECT = Path(__file__).resolve().parents[2] / "dbt"
# dbt notes variables of this prefix in the manifest.
NOTED_PREFIX = "DBT_ENV_CUSTOM_ENV_"
NOTED_NAME = "PROJECT_FINGERPRINT"
FINGERPRINT_VARIABLE = NOTED_PREFIX + NOTED_NAME
PARTS = ("models", "macros", "snapshots", "tests")
COMMAND = "make manifest"


def manifest_path() -> Path:
    """Return where the manifest is, written or not: apart from what each dbt command writes."""
    return PROJECT / os.environ.get("DBT_TARGET_PATH", "target") / "airflow" / "manifest.json"


def find_manifest() -> Path:
    """Return the path of the manifest. Raises ConfigurationError when it is missing, or not that of the models."""
    path = manifest_path()
    try:
        found = json.loads(path.read_bytes())["metadata"]["env"].get(NOTED_NAME)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} is missing, and tells which models there are: write it with `{COMMAND}`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a manifest of dbt: write it anew with `{COMMAND}`") from error
    if found != fingerprint():
        raise ConfigurationError(f"{path} is stale: files of dbt/ have changed since; write it anew with `{COMMAND}`")
    return path


def fingerprint(project: Path = PROJECT) -> str:
    """Return what tells this state of the project's files from any other; file times and places do not count."""
    files = [project / "dbt_project.yml", *(path for part in PARTS for path in (project / part).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file() and path.suffix in (".sql", ".yml")):
        digest.update(f"{path.relative_to(project)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
