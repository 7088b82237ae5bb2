"""Airflow on this machine: what keeps it from starting is told, and only its own processes are stopped."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from deploy.local.airflow_server import CHECKOUT, Airflow, processes, start, stop
from deploy.local.databases import Databases
from deploy.local.servers import Server
from etl.errors import UnavailableError

NONE = Databases(urls={}, is_source_embedded=True, is_target_embedded=True)
# Ends with its child only if that is found too.
WITH_A_CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def begin():
    """A function that starts a process of a session of its own, and waits until it is at work."""
    begun = []

    def start_process(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_A_CHILD],
            cwd=folder,
            env={},  # a process that gives itself a title writes over it
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_process
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_busy_port_is_reported_before_anything_is_created(webhook, tmp_path):
    url, _ = webhook
    port = int(url.split(":")[2].split("/")[0])
    server = Server(name="target", folder=tmp_path / "target", port=1, major=18)

    with pytest.raises(
        UnavailableError, match=f"port {port} is taken by another program: .* AIRFLOW_PORT={port + 1000}"
    ):
        start(Airflow(home=tmp_path / "airflow", port=port), NONE, server)
    assert list(tmp_path.iterdir()) == []


def test_processes_without_environment_are_stopped_with_children(begin, tmp_path):
    airflow = Airflow(home=tmp_path, port=1)
    process = begin(CHECKOUT)
    airflow.session.write_text(f"{process.pid}\n")

    assert process.pid in set(processes(airflow))
    assert len(list(processes(airflow))) == 2
    assert stop(airflow)
    assert process.wait(10) < 0
    assert list(processes(airflow)) == []
    assert not stop(airflow)


def test_process_with_a_reused_session_id_is_left_alone(begin, tmp_path):
    airflow = Airflow(home=tmp_path, port=1)
    process = begin("/")
    airflow.session.write_text(f"{process.pid}\n")

    assert not stop(airflow)
    assert process.poll() is None
