"""`python -m deploy.containers.steps STEP`: run what the services `roles` and `dbt` do, on servers given by URL."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from deploy.containers.entrypoint import SECRETS
from deploy.containers.provision import provision_given
from deploy.local.summary import print_marts
from deploy.reporting import run_reported
from etl.errors import ConfigurationError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step and return its exit code, as `etl` does."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.containers.steps", description="Run one step of the pipeline in a container."
    )
    parser.add_argument("step", choices=sorted(STEPS), help="step to run")
    given = parser.parse_args(argv)
    return run_reported(given.step, STEPS[given.step])


def provision() -> int:
    """Create databases and roles on the servers whose superuser's URL is given, with passwords from files."""
    print("\n".join(provision_given(os.environ, SECRETS)))
    return 0


def build() -> int:
    """Build the models on a warehouse given by URL and check their rules; print the row counts of the marts."""
    from etl.transform import project  # noqa: PLC0415 so that each step imports only what it needs

    url = os.environ.get("TRANSFORMER_DATABASE_URL") or os.environ.get("TARGET_DATABASE_URL")
    if not url:
        raise ConfigurationError("TRANSFORMER_DATABASE_URL is not set: set it to the URL of the warehouse")
    started = time.monotonic()
    project.build(os.environ)
    print_marts(url, time.monotonic() - started)
    return 0


STEPS: Mapping[str, Callable[[], int]] = {"provision": provision, "build": build}

if __name__ == "__main__":
    sys.exit(main())
