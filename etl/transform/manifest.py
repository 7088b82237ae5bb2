"""The manifest from which Airflow creates a task for each model: where it is, and whether it matches the models.

`make manifest` has dbt write it; parsing a DAG file never does, because that takes seconds. The manifest contains a
fingerprint of the project's files, so a stale one is detected and refused. Begin at `find_manifest`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from etl.errors import ConfigurationError

PROJECT = Path(__file__).resolve().parents[2] / "dbt"
# dbt copies environment variables with this prefix into the manifest.
NOTED_PREFIX = "DBT_ENV_CUSTOM_ENV_"
NOTED_NAME = "PROJECT_FINGERPRINT"
FINGERPRINT_VARIABLE = NOTED_PREFIX + NOTED_NAME
PARTS = ("models", "macros", "snapshots", "tests")
COMMAND = "make manifest"


def manifest_path() -> Path:
    """Return the path of the manifest, which need not exist; no other dbt command writes there."""
    return PROJECT / os.environ.get("DBT_TARGET_PATH", "target") / "airflow" / "manifest.json"


def find_manifest() -> Path:
    """Return the path of the manifest. Raises ConfigurationError when it is missing or stale."""
    path = manifest_path()
    try:
        found = json.loads(path.read_bytes())["metadata"]["env"].get(NOTED_NAME)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} is missing, and Cosmos reads the models from it: write it with `{COMMAND}`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a dbt manifest: write it again with `{COMMAND}`") from error
    if found != fingerprint():
        raise ConfigurationError(f"{path} is stale: files in dbt/ have changed since; write it again with `{COMMAND}`")
    return path


def fingerprint(project: Path = PROJECT) -> str:
    """Return a hash of the project's files, independent of their times and of the project's location."""
    files = [project / "dbt_project.yml", *(path for part in PARTS for path in (project / part).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file() and path.suffix in (".sql", ".yml")):
        digest.update(f"{path.relative_to(project)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
