"""`python -m deploy.containers.health [PART]`: the health check of a container; exits with 1 and the reason.

Without PART, every database that a variable names must accept a connection. PART is a component of Airflow, which
reports to the metadata database; the api-server returns its state, which is faster than starting Airflow's own check.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence

ANSWER_SECONDS = 5


def main(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Check what the arguments name, or all databases; return the exit code."""
    faults = [_fault_of_part(part, environment) for part in argv] if argv else list(_database_faults(environment))
    found = [fault for fault in faults if fault]
    print("\n".join(found) or "healthy")
    return 1 if found else 0


def _fault_of_part(part: str, environment: Mapping[str, str]) -> str:
    """Return what is wrong with a component of Airflow, or an empty text."""
    address = environment.get("AIRFLOW_HEALTH_URL") or "http://localhost:8080/api/v2/monitor/health"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 an http address
            health = json.loads(answer.read())
    except (OSError, ValueError) as error:
        return f"{part}: {address} does not answer: {error}"
    found = (health.get(part) or {}).get("status")
    return "" if found == "healthy" else f"{part}: {found or 'unknown'}"


def _database_faults(environment: Mapping[str, str]) -> list[str]:
    import psycopg2  # noqa: PLC0415 checks of Airflow need no driver

    faults = []
    for name, url in sorted(environment.items()):
        if name.endswith("_DATABASE_URL") and url:
            try:
                psycopg2.connect(url, connect_timeout=ANSWER_SECONDS).close()
            except psycopg2.Error as error:
                faults.append(f"{name}: {' '.join(str(error).split())}")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
