"""Creates the project's environment, `.venv`, from the lock file, with only Python and its venv module.

The system's Python runs it, so it uses only the standard library, and starts on an old Python to report that.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LEAST_PYTHON = (3, 11)
CHECKOUT = Path(__file__).resolve().parents[2]
GROUPS = ("core", "dev", "airflow")


def main(group: str, checkout: Path = CHECKOUT) -> int:
    """Install the lock file of a group into `.venv`, unless that is done already; return the exit code."""
    if sys.version_info < LEAST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        return _fail(f"expected Python 3.11 or newer, found {found}: run make with PYTHON=/path/to/python3.11")
    environment = checkout / ".venv"
    wanted = fingerprint(checkout, group)
    if wanted in installed_fingerprints(environment):
        return 0
    print(f"installing the {group} packages into .venv (about 20 seconds) ...", file=sys.stderr, flush=True)
    for step, command in _steps(checkout, environment, group):
        finished = subprocess.run(command, env=_pip_environment(), cwd=checkout, check=False)
        if finished.returncode:
            return _fail(f"{step} failed: the lines above say why; then run the same make command again")
    # Every group includes the core. All are locked in one resolution, so packages of other groups stay as they are.
    current = {fingerprint(checkout, known) for known in GROUPS}
    stamps = {wanted, fingerprint(checkout, "core")} | (installed_fingerprints(environment) & current)
    (environment / "installed.txt").write_text("\n".join(sorted(stamps)) + "\n")
    return 0


def fingerprint(checkout: Path, group: str) -> str:
    """Return the text that identifies an installed group: its name, the Python version, and a hash of lock and path."""
    lock = (checkout / "lock" / f"{group}.txt").read_bytes() + (checkout / "pyproject.toml").read_bytes()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{group} {version} {hashlib.sha256(lock + str(checkout).encode()).hexdigest()}"


def installed_fingerprints(environment: Path) -> set[str]:
    """Return the fingerprints of completely installed groups; none for a broken environment."""
    stamp = environment / "installed.txt"
    if not stamp.exists() or not (environment / "bin" / "python").exists():
        return set()
    return set(stamp.read_text().splitlines())


def _steps(checkout: Path, environment: Path, group: str) -> list[tuple[str, list[str]]]:
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    steps = []
    if not _is_whole(environment):
        shutil.rmtree(environment, ignore_errors=True)
        create = [sys.executable, "-m", "venv", str(environment)]
        steps.append(("creating .venv (on Debian: apt-get install python3-venv)", create))
    lock = str(checkout / "lock" / f"{group}.txt")
    # The lock names every package, so pip resolves nothing; compiled bytecode saves dbt 8 seconds at each start.
    steps.append(
        ("installing the packages", [*pip, "--compile", "--require-hashes", "--only-binary=:all:", "-r", lock])
    )
    steps.append(("installing the project", [*pip, "--no-build-isolation", "--editable", str(checkout)]))
    return steps


def _is_whole(environment: Path) -> bool:
    """Return whether the environment has pip and the version of this Python; otherwise it is recreated."""
    python = environment / "bin" / "python"
    if not python.exists():
        return False
    check = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    return subprocess.run([str(python), "-c", check], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _pip_environment() -> dict[str, str]:
    # setuptools warns about editable installs, and a new user cannot do anything about that.
    return {**os.environ, "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore", "PYTHONWARNINGS": "ignore"}


def _fail(message: str) -> int:
    print(f"setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in GROUPS else "core"))
