"""A failure is told in the log, by webhook and by e-mail; an alert that cannot be sent breaks nothing."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from etl.orchestration import alerts

TASK = SimpleNamespace(dag_id="warehouse_pipeline", task_id="dbt_test", run_id="scheduled__1", try_number=2)


@pytest.fixture
def sent(monkeypatch):
    """What goes out, by way."""
    messages = []
    ways = {name: lambda _, *message, name=name: messages.append((name, *message)) for name in alerts.WAYS}
    monkeypatch.setattr(alerts, "WAYS", ways)
    return messages


def test_a_failure_names_task_run_and_reason(sent, monkeypatch, caplog):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example/secret")
    alerts.tell_failure({"task_instance": TASK, "exception": ValueError("rule r: 2 rows break it")})

    subject = "Tidemark: warehouse_pipeline.dbt_test, run scheduled__1, try 2 failed"
    assert sent == [("ALERT_WEBHOOK_URL", subject, "rule r: 2 rows break it")]
    assert f"{subject}: rule r: 2 rows break it" in caplog.text


def test_a_task_that_vanished_is_told_too(sent, monkeypatch):
    monkeypatch.setenv("ALERT_EMAIL_TO", "data@example.org")
    alerts.tell_failure({"ti": TASK})

    assert sent[0][0] == "ALERT_EMAIL_TO"
    assert sent[0][2] == "its process was killed or lost"


def test_without_configuration_a_failure_is_logged(sent, monkeypatch, caplog):
    for name in alerts.WAYS:
        monkeypatch.delenv(name, raising=False)
    alerts.tell_failure({"ti": TASK})

    assert sent == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_late_run_is_told_with_its_limit(sent, monkeypatch):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example/secret")
    context = {"dag_run": {"dag_run_id": "scheduled__1"}}
    asyncio.run(alerts.tell_lateness(dag_id="warehouse_pipeline", limit="2:00:00", context=context))

    assert sent[0][1:] == (
        "Tidemark: warehouse_pipeline, run scheduled__1 is late",
        "it has not ended within 2:00:00",
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/secret", "file:///secret", "secret"])
def test_an_alert_that_cannot_be_sent_is_logged_without_its_address(url, monkeypatch, caplog):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", url)
    alerts.tell_failure({"ti": TASK})

    assert "ALERT_WEBHOOK_URL: the alert was not sent" in caplog.text
    assert "secret" not in caplog.text
