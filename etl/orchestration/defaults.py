"""What the DAGs share: owner, retries, time limits, alerts, and the assets that they produce."""

from __future__ import annotations

import datetime as dt
import math
import os
from typing import Any

from airflow.sdk import Asset, AsyncCallback, DeadlineAlert, DeadlineReference

from etl.errors import ConfigurationError
from etl.orchestration.alerts import tell_failure, tell_lateness


def read_number(name: str, default: float) -> float:
    """Return the number above 0 in an environment variable, or the default. Raises ConfigurationError for all else."""
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigurationError(f"{name} is {text!r}: expected a number above 0; if unset, it is {default:g}")
    return number


RAW = Asset(name="raw", uri="tidemark://warehouse/raw", group="tidemark")
MARTS = Asset(name="marts", uri="tidemark://warehouse/marts", group="tidemark")
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SCHEDULE = os.environ.get("PIPELINE_SCHEDULE") or "@hourly"
PIPELINE_LIMIT = dt.timedelta(minutes=read_number("PIPELINE_DEADLINE_MINUTES", 120))
EXTRACT_LIMIT = dt.timedelta(hours=6)  # a first load of a large source
AFTER_EITHER_WAY = "none_failed_min_one_success"  # one of the two ways to replicate is skipped
DBT_LIMIT = dt.timedelta(hours=2)
# The dates of a run mean nothing to these DAGs: Airflow does not offer to run them for past ones.
BY_HAND = ["manual"]
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "owner": "data_platform",
    "retries": 3,
    "retry_delay": dt.timedelta(seconds=read_number("PIPELINE_RETRY_SECONDS", 60)),
    "retry_exponential_backoff": 2,
    "max_retry_delay": dt.timedelta(minutes=15),
    "on_failure_callback": tell_failure,
}


def deadline(dag_id: str, limit: dt.timedelta) -> DeadlineAlert:
    """Return the alert for a run that has not ended `limit` after it was queued."""
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=limit,
        callback=AsyncCallback(tell_lateness, kwargs={"dag_id": dag_id, "limit": str(limit)}),
    )
