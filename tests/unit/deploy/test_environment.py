"""The environment is made from the lock, once."""

import subprocess
import sys

import pytest

from deploy.local import environment


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "core.txt").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def test_changed_lock_file_requires_a_new_installation(checkout):
    before = environment.fingerprint(checkout, "core")
    (checkout / "lock" / "core.txt").write_text("a==2\n")

    assert environment.fingerprint(checkout, "core") != before


def test_incomplete_environment_counts_as_missing(checkout):
    made = checkout / ".venv"
    made.mkdir()
    (made / "installed.txt").write_text(environment.fingerprint(checkout, "core") + "\n")

    assert environment.installed_fingerprints(made) == set()


def test_an_installed_group_is_not_installed_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    (checkout / ".venv" / "installed.txt").write_text(environment.fingerprint(checkout, "core") + "\n")

    assert environment.main("core", checkout) == 0
    assert python.read_text() == ""


def test_old_python_is_rejected_with_the_required_version(checkout, monkeypatch, capsys):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2))

    assert environment.main("core", checkout) == 1
    assert "expected Python 3.11 or newer, found 3.9.2" in capsys.readouterr().err


def test_the_script_needs_the_standard_library_only():
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({environment.__file__!r}, run_name='x')"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr


def test_lock_files_hold_hashes_and_no_urls():
    locks = sorted((environment.CHECKOUT / "lock").glob("*.txt"))

    assert [lock.stem for lock in locks] == ["airflow", "core", "dev"]
    for lock in locks:
        text = lock.read_text()
        assert text.count("--hash=sha256:") > 100
        assert "://" not in text
