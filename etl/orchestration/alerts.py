"""Sends alerts about failed tasks and late runs: to the log, and by webhook or e-mail if these are configured.

An alert that cannot be sent is logged and has no other effect. Begin at `tell_failure`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from etl.text import printable

log = logging.getLogger("tidemark")

ENDED = ("success", "failed")
SEND_TIMEOUT_SECONDS = 10


def tell_failure(context: Mapping[str, Any]) -> None:
    """Send an alert that a task has failed for good: which task, in which run, and why. An `on_failure_callback`."""
    task = context.get("task_instance") or context.get("ti")
    reason = str(context.get("exception") or "its process was killed or lost").strip()
    where = f"{task.dag_id}.{task.task_id}, run {task.run_id}, try {task.try_number}" if task else "a task"
    tell(f"Tidemark: {where} failed", reason)


async def tell_lateness(**kwargs: Any) -> None:
    """Send an alert that a run has not ended by its deadline. The callback of a deadline alert, in the triggerer.

    Airflow also calls it for runs that failed before their deadline; these have had an alert already.
    """
    run = (kwargs.get("context") or {}).get("dag_run") or {}
    if run.get("state") in ENDED:
        return
    run_id = run.get("dag_run_id") or run.get("run_id")
    name = f"{kwargs.get('dag_id', 'a DAG')}, run {run_id or 'unknown'}"
    limit = kwargs.get("limit", "its deadline")
    await asyncio.to_thread(tell, f"Tidemark: {name} is late", f"it has not ended within {limit}")


def tell(subject: str, text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Log a message, and send it by each means that the environment configures."""
    subject, text = printable(subject), "\n".join(map(printable, text.split("\n")))
    log.error("%s: %s", subject, text)
    for variable, send in WAYS.items():
        if environment.get(variable):
            try:
                send(environment, subject, text)
            except (OSError, ValueError, http.client.HTTPException, smtplib.SMTPException) as error:
                log.warning(
                    "%s: the alert was not sent: %s", variable, type(error).__name__
                )  # its text may contain the URL


def _post(environment: Mapping[str, str], subject: str, text: str) -> None:
    """Post `{"text": ...}`, which Slack, Mattermost, Teams and most other services accept."""
    url = environment["ALERT_WEBHOOK_URL"]
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("expected an http or https URL")
    body = json.dumps({"text": f"{subject}\n{text}"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 checked above
    with urllib.request.urlopen(request, timeout=SEND_TIMEOUT_SECONDS):  # noqa: S310
        pass


def _mail(environment: Mapping[str, str], subject: str, text: str) -> None:
    """Send through ALERT_SMTP_URL: smtp://user:password@host:587, or smtps:// for TLS from the start."""
    server = urlsplit(environment.get("ALERT_SMTP_URL") or "smtp://localhost:25")
    message = EmailMessage()
    message["Subject"] = subject
    message["To"] = environment["ALERT_EMAIL_TO"]
    message["From"] = environment.get("ALERT_EMAIL_FROM") or "tidemark@localhost"
    message.set_content(text)
    host, port, verified = server.hostname or "localhost", server.port or 0, ssl.create_default_context()
    session: smtplib.SMTP
    if server.scheme == "smtps":
        session = smtplib.SMTP_SSL(host, port, timeout=SEND_TIMEOUT_SECONDS, context=verified)
    else:
        session = smtplib.SMTP(host, port, timeout=SEND_TIMEOUT_SECONDS)
    with session:
        if server.username:
            if server.scheme != "smtps":
                session.starttls(context=verified)
            session.login(unquote(server.username), unquote(server.password or ""))
        session.send_message(message)


WAYS: Mapping[str, Callable[[Mapping[str, str], str, str], None]] = {
    "ALERT_WEBHOOK_URL": _post,
    "ALERT_EMAIL_TO": _mail,
}
