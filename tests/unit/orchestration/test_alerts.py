"""A failure is told in the log, by webhook and by e-mail; an alert that cannot be sent breaks nothing."""

import asyncio
import logging
import socketserver
import threading
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


def test_vanished_task_is_reported_too(sent, monkeypatch):
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


def test_late_run_is_reported_with_its_limit(sent, monkeypatch):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example/secret")
    context = {"dag_run": {"dag_run_id": "scheduled__1"}}
    asyncio.run(alerts.tell_lateness(dag_id="warehouse_pipeline", limit="2:00:00", context=context))

    assert sent[0][1:] == (
        "Tidemark: warehouse_pipeline, run scheduled__1 is late",
        "it has not ended within 2:00:00",
    )


def test_a_run_that_has_ended_by_its_deadline_is_not_late(sent, monkeypatch):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example/secret")
    context = {"dag_run": {"dag_run_id": "scheduled__1", "state": "failed"}}
    asyncio.run(alerts.tell_lateness(dag_id="warehouse_pipeline", limit="2:00:00", context=context))

    assert sent == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/secret", "http://127.0.0.1:1/sec ret", "file:///secret", "secret"])
def test_unsent_alert_is_logged_without_url_and_mail_is_tried(url, monkeypatch, caplog, mailbox):
    monkeypatch.setenv("ALERT_WEBHOOK_URL", url)
    monkeypatch.setenv("ALERT_EMAIL_TO", "data@example.org")
    alerts.tell_failure({"ti": TASK})

    assert "ALERT_WEBHOOK_URL: the alert was not sent" in caplog.text
    assert "sec" not in caplog.text.replace("seconds", "")
    assert len(mailbox.messages) == 1


class Mailbox(socketserver.StreamRequestHandler):
    """Takes mail as a server without TLS does."""

    def handle(self):
        self.answer("220 here")
        while line := self.rfile.readline().decode().strip():
            self.server.lines.append(line.upper())
            if line.upper() == "DATA":
                self.answer("354 go on")
                self.server.messages.append("".join(iter(lambda: self.rfile.readline().decode(), ".\r\n")))
            self.answer("221 bye" if line.upper() == "QUIT" else "250 ok")

    def answer(self, text):
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def mailbox(monkeypatch):
    """A mail server, to which alerts are sent."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.lines, server.messages = [], []
        monkeypatch.setenv("ALERT_SMTP_URL", f"smtp://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_alert_goes_out_by_mail(mailbox, monkeypatch):
    monkeypatch.setenv("ALERT_EMAIL_TO", "data@example.org")
    monkeypatch.setenv("ALERT_EMAIL_FROM", "tidemark@example.org")
    alerts.tell("Tidemark: a task failed", "rule r: 2 rows break it")

    (message,) = mailbox.messages
    assert "Subject: Tidemark: a task failed\r\n" in message
    assert message.endswith("\r\n\r\nrule r: 2 rows break it\r\n")
    assert any(line.startswith("MAIL FROM:<TIDEMARK@EXAMPLE.ORG>") for line in mailbox.lines), mailbox.lines
    assert any(line.startswith("RCPT TO:<DATA@EXAMPLE.ORG>") for line in mailbox.lines), mailbox.lines


def test_a_password_is_not_sent_to_a_mail_server_without_tls(mailbox, monkeypatch, caplog):
    monkeypatch.setenv("ALERT_EMAIL_TO", "data@example.org")
    port = mailbox.server_address[1]
    monkeypatch.setenv("ALERT_SMTP_URL", f"smtp://somebody:secret@127.0.0.1:{port}")
    alerts.tell("Tidemark: a task failed", "why")

    assert mailbox.messages == []
    assert [line for line in mailbox.lines if "AUTH" in line] == []
    assert "ALERT_EMAIL_TO: the alert was not sent" in caplog.text
