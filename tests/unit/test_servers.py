"""Which servers the tests get is said, with the reason, and never something else than was asked for."""

import gc
import re
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.dbt.built_shop import CHECKOUT
from tests.servers import EMBEDDED, Choice, choose, find_obstacle

IMAGES = {"source": "postgres:16", "target": "postgres:17"}


@pytest.fixture
def without_docker(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")


@pytest.mark.usefixtures("without_docker")
def test_embedded_servers_without_docker_show_the_reason():
    choice = choose("auto", IMAGES)

    assert choice.images is None
    assert str(choice) == "embedded servers, source PostgreSQL 16, target PostgreSQL 18 (Docker does not answer)"


@contextmanager
def listen_and_hang_up(path):
    """Listen on a socket as Docker does, and close each connection at once."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def hang_up():
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("found", ["no port", "no socket", "a socket of which nobody reads", "another program"])
def test_looking_for_docker_in_vain_leaves_nothing_open(monkeypatch, found):
    with tempfile.TemporaryDirectory() as folder:  # whose name is short enough for a socket
        path = str(Path(folder) / "docker.sock")
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1" if found == "no port" else f"unix://{path}")
        if found == "a socket of which nobody reads":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path)
        gc.collect()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if found == "another program":
                with listen_and_hang_up(path):
                    obstacle = find_obstacle(tuple(IMAGES.values()))
            else:
                obstacle = find_obstacle(tuple(IMAGES.values()))
            gc.collect()

    assert obstacle == "Docker does not answer"
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.usefixtures("without_docker")
def test_unavailable_requested_containers_are_an_error():
    with pytest.raises(RuntimeError, match="Docker does not answer; start Docker, or run with --servers=embedded"):
        choose("containers", IMAGES)


def test_choice_of_embedded_servers_ignores_docker():
    assert choose("embedded", IMAGES) is EMBEDDED


def test_a_choice_of_containers_names_both_images():
    assert str(Choice(images=IMAGES, reason="as asked")) == (
        "containers, source postgres:16, target postgres:17 (as asked); embedded where a test looks into its server"
    )


@pytest.mark.usefixtures("without_docker")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["tests/integration"], 0, r"^databases: embedded servers.*Docker does not answer"),
        (["tests/integration", "--servers=embedded"], 0, r"^databases: embedded servers.*as asked"),
        (["tests/unit"], 0, r"^databases: none is needed"),
        (["tests/integration", "--servers=containers"], 4, r"^ERROR: .*Docker does not answer; start Docker"),
    ],
)
def test_the_choice_is_in_the_header(arguments, code, told):
    """No file is collected, so none is imported."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--ignore-glob=*test_*", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert re.search(told, finished.stdout + finished.stderr, flags=re.MULTILINE)
    assert (finished.returncode == 4) == (code == 4)


@pytest.mark.usefixtures("without_docker")
def test_skipped_tests_are_listed_and_found_by_their_names(tmp_path):
    listing = tmp_path / "skipped"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header"]
    file = "tests/end_to_end/test_compose.py"
    subprocess.run([*command, file, f"--list-skipped={listing}"], cwd=CHECKOUT, capture_output=True, check=True)
    found = subprocess.run(
        [*command, "--collect-only", f"@{listing}"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )

    names = listing.read_text().splitlines()
    text = (CHECKOUT / file).read_text()
    places = [text.index("def " + name.partition("::")[2].partition("[")[0] + "(") for name in names]
    assert places == sorted(places)  # a test may follow from those above it
    assert f"{file}::test_container_user_is_unprivileged_with_limited_writes[airflow_db]" in names
    assert [line for line in found.stdout.splitlines() if line.startswith(file)] == names
