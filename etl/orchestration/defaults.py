"""What the DAGs share: owner, retries, time limits, who is told, and the assets that they produce."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from airflow.sdk import Asset, AsyncCallback, DeadlineAlert, DeadlineReference

from etl.orchestration.alerts import tell_failure, tell_lateness

RAW = Asset(name="raw", uri="tidemark://warehouse/raw", group="tidemark")
MARTS = Asset(name="marts", uri="tidemark://warehouse/marts", group="tidemark")
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SCHEDULE = os.environ.get("PIPELINE_SCHEDULE") or "@hourly"
EXTRACT_LIMIT = dt.timedelta(hours=6)  # a first load of a large source
DBT_LIMIT = dt.timedelta(hours=2)
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "owner": "data_platform",
    "retries": 3,
    "retry_delay": dt.timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": dt.timedelta(minutes=15),
    "on_failure_callback": tell_failure,
}


def deadline(dag_id: str, limit: dt.timedelta) -> DeadlineAlert:
    """Return the alert for a run that has not ended within `limit` of being queued."""
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=limit,
        callback=AsyncCallback(tell_lateness, kwargs={"dag_id": dag_id, "limit": str(limit)}),
    )
