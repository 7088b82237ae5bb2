"""Turns Airflow's connections into the environment variables that `etl` and dbt read. Begin at `read_environment`.

A password is only in the environment of the process that uses it, and Airflow masks it in every log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from etl.database_url import make_url
from etl.errors import ConfigurationError
from etl.orchestration.failures import final_errors

# The name of each connection, and the variable that it sets; those in OPTIONAL may be missing.
NEEDED = {"source_db": "SOURCE_DATABASE_URL", "target_db": "TARGET_DATABASE_URL"}
OPTIONAL = {"transformer_db": "TRANSFORMER_DATABASE_URL"}
# A scheduled task waits for another run or dbt command instead of failing.
DEFAULTS = {"ETL_LOCK_WAIT_SECONDS": "600"}
NOT_FOR_LIBPQ = ("__extra__", "cursor")  # which Airflow's own hook reads


@final_errors()
def read_environment() -> dict[str, str]:
    """Return this process's environment with the connections' database URLs, and no others.

    Fails without a retry when connections are missing, and names all of them.
    """
    from airflow.sdk import Connection  # noqa: PLC0415 read in a task only, never when a DAG file is parsed
    from airflow.sdk.exceptions import AirflowNotFoundException  # noqa: PLC0415

    urls, missing = {}, []
    for name, variable in {**NEEDED, **OPTIONAL}.items():
        try:
            urls[variable] = connection_url(Connection.get(name))
        except AirflowNotFoundException:
            if name in NEEDED:
                missing.append(name)
    if missing:
        raise ConfigurationError(
            *(
                f"the connection {name} is not defined: set AIRFLOW_CONN_{name.upper()} to "
                "postgresql://user:password@host:5432/database, or add it in Airflow"
                for name in missing
            )
        )
    return DEFAULTS | without_urls(os.environ) | urls


def without_urls(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without database URLs, so that only those of the connections are used."""
    return {name: value for name, value in environment.items() if not name.endswith("_DATABASE_URL")}


def connection_url(connection: Any) -> str:
    """Return the libpq URL of an Airflow connection; its extra fields become libpq parameters, such as sslmode."""
    extra = {name: value for name, value in connection.extra_dejson.items() if name not in NOT_FOR_LIBPQ}
    return make_url(
        {
            **extra,
            "user": connection.login,
            "password": connection.password,
            "host": connection.host,
            "port": connection.port,
            "dbname": connection.schema,
        }
    )
