"""Makes the project's environment, `.venv`, from the lock file, with nothing but Python and its venv module.

Run by the system's Python, so it uses the standard library only and still starts on an old Python, to say so.
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
    """Bring `.venv` to the state of the lock file of a group; a second call finds nothing to do."""
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
    # Every group holds the core; all come from one resolution, so what another group brought stays as it was.
    current = {fingerprint(checkout, known) for known in GROUPS}
    stamps = {wanted, fingerprint(checkout, "core")} | (installed_fingerprints(environment) & current)
    (environment / "installed.txt").write_text("\n".join(sorted(stamps)) + "\n")
    return 0


def fingerprint(checkout: Path, group: str) -> str:
    """Return what tells an up-to-date environment: group, Python, place and the contents of the lock."""
    lock = (checkout / "lock" / f"{group}.txt").read_bytes() + (checkout / "pyproject.toml").read_bytes()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{group} {version} {hashlib.sha256(lock + str(checkout).encode()).hexdigest()}"


def installed_fingerprints(environment: Path) -> set[str]:
    """Return the groups that were installed to their end, and nothing for a broken environment."""
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
        steps.append(
            ("making .venv (on Debian: apt-get install python3-venv)", [sys.executable, "-m", "venv", str(environment)])
        )
    lock = str(checkout / "lock" / f"{group}.txt")
    # The lock names every package, so pip resolves nothing; compiled bytecode saves dbt 8 seconds at each start.
    steps.append(
        ("installing the packages", [*pip, "--compile", "--require-hashes", "--only-binary=:all:", "-r", lock])
    )
    steps.append(("installing the project", [*pip, "--no-build-isolation", "--editable", str(checkout)]))
    return steps


def _is_whole(environment: Path) -> bool:
    """Tell whether the environment has a pip of the Python that runs this; else it is made anew."""
    python = environment / "bin" / "python"
    if not python.exists():
        return False
    check = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    return subprocess.run([str(python), "-c", check], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _pip_environment() -> dict[str, str]:
    # setuptools warns of how it installs a checkout, which a newcomer can do nothing about.
    return {**os.environ, "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore", "PYTHONWARNINGS": "ignore"}


def _fail(message: str) -> int:
    print(f"setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in GROUPS else "core"))
