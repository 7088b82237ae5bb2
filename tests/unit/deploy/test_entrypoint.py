"""What a container begins with: passwords in a file of its own, then the program in its place."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.containers.entrypoint import main, passfile_lines
from tests.results import pick

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def secrets(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "target_db.loader").write_text("a:b\\c\n")
    (folder / "shop.example.org.replicator").write_text("d e")
    (folder / "airflow_admin").write_text("f")
    return folder


def test_each_role_of_a_host_has_an_escaped_line(secrets):
    assert list(passfile_lines(secrets)) == [
        "shop.example.org:*:*:replicator:d e\n",
        "target_db:*:*:loader:a\\:b\\\\c\n",
    ]


def test_program_replaces_the_process_and_returns_its_exit_code(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "deploy.containers.entrypoint", "sh", "-c", 'cat "$PGPASSFILE"; exit 7'],
        env={"PATH": "/usr/bin:/bin", "PGPASSFILE": str(tmp_path / "pgpass"), "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )

    assert pick(finished, "returncode", "stderr") == (7, "")
    assert stat.S_IMODE((tmp_path / "pgpass").stat().st_mode) == 0o600


def test_only_the_program_gets_alert_urls_from_non_empty_files(secrets):
    (secrets / "alert_webhook_url").write_text("https://hooks.example/key\n")
    (secrets / "alert_smtp_url").write_text("\n")
    script = (
        "import os, sys; from pathlib import Path; from deploy.containers.entrypoint import main; "
        "sys.exit(main(['sh', '-c', 'env'], {'PATH': os.environ['PATH'], 'KEPT': '1'}, Path(sys.argv[1])))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(secrets)], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    told = [line for line in finished.stdout.splitlines() if line.startswith(("ALERT", "KEPT"))]

    assert sorted(told) == ["ALERT_WEBHOOK_URL=https://hooks.example/key", "KEPT=1"]


def test_missing_program_is_reported(tmp_path, secrets, capsys):
    assert main(["no-such-program"], {"PGPASSFILE": str(tmp_path / "pgpass")}, secrets) == 2
    assert capsys.readouterr().err == "entrypoint: no-such-program: No such file or directory\n"
    assert (tmp_path / "pgpass").read_text().count("\n") == 2


def test_nothing_to_run_is_wrong_usage(capsys):
    assert main([], {}) == 2
    assert "expected a program" in capsys.readouterr().err


def test_airflow_reads_the_login_from_a_writable_file(tmp_path, secrets):
    path = tmp_path / "logins.json"
    for _ in range(2):  # a container that starts again finds the last one's
        main(["no-such-program"], {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(path)}, secrets)

    assert json.loads(path.read_text()) == {"admin": "f"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
