"""`python -m deploy.local COMMAND`: what `make` runs. It starts an embedded server for each side without a URL."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from deploy.local import airflow_server
from deploy.local.databases import CHECKOUT, Databases, embedded_servers, open_databases
from deploy.local.provision import TARGET_NAME
from deploy.local.servers import choose_home, find_binaries
from deploy.reporting import run_reported
from etl.database_url import TLS_VARIABLES, read_url
from etl.errors import ConfigurationError, EtlError

PSQL_ROLES = ("analyst", "transformer")
PSQL_VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    **TLS_VARIABLES,
}
WITHOUT_TLS = ("disable", "allow", "prefer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as `etl` does."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Run the pipeline on one machine.")
    parser.add_argument("command", choices=sorted(COMMANDS), help="command to run; `make` describes each")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    given = parser.parse_args(argv)
    return run_reported(given.command, partial(COMMANDS[given.command], given.arguments))


def up(_: Sequence[str]) -> int:
    databases = open_databases()
    source, target = embedded_servers()
    if databases.is_source_embedded:
        print(f"source: PostgreSQL {source.major} on port {source.port}, data in {source.data}")
    if databases.is_target_embedded:
        print(f"target: PostgreSQL {target.major} on port {target.port}, data in {target.data}")
    return 0


def airflow(_: Sequence[str]) -> int:
    """Start Airflow on the databases, created and seeded if needed, and print its address and login."""
    databases = open_databases()
    _seed_if_empty(databases)
    metadata_server = embedded_servers()[1]
    metadata_server.start()  # even if the warehouse is given by URL
    server = airflow_server.find_airflow()
    if os.environ.get("AIRFLOW_VAR_DBT_RUNNER") == "cosmos":
        manifest([])
    _say("starting Airflow (about 40 seconds) ...")
    airflow_server.start(server, databases, metadata_server)
    user, password = server.login()
    print(f"Airflow: {server.address}  login {user}  password {password}")
    print("unpause warehouse_pipeline there, or trigger it; `make airflow-down` stops Airflow")
    return 0


def airflow_down(_: Sequence[str]) -> int:
    print(f"airflow: {'stopped' if airflow_server.stop(airflow_server.find_airflow()) else 'was not running'}")
    return 0


def down(_: Sequence[str]) -> int:
    _stop_airflow()
    for server in embedded_servers():
        print(f"{server.name}: {'stopped' if server.stop() else 'was not running'}")
    return 0


def clean(_: Sequence[str]) -> int:
    _stop_airflow()
    for server in embedded_servers():
        server.remove()
        print(f"{server.name}: data removed")
    shutil.rmtree(choose_home(CHECKOUT), ignore_errors=True)  # copies of the binaries
    return 0


def seed(arguments: Sequence[str]) -> int:
    return _source_db("seed", arguments, open_databases())


def simulate(arguments: Sequence[str]) -> int:
    databases = open_databases()
    if not databases.is_source_embedded:
        raise ConfigurationError(
            "simulate writes to the source, and SOURCE_DATABASE_URL is a database of yours: unset it to use the "
            "embedded one, or confirm yours: SOURCE_ADMIN_DATABASE_URL=... python -m source_db simulate"
        )
    return _source_db("simulate", arguments, databases)


def extract(arguments: Sequence[str]) -> int:
    return _etl("run", arguments)


def status(arguments: Sequence[str]) -> int:
    for server in embedded_servers():
        is_given = os.environ.get(f"{server.name.upper()}_DATABASE_URL")
        if not is_given and (not server.data.exists() or server.running_port() is None):
            print(f"status: the {server.name} server is stopped: start it with `make up`", file=sys.stderr)
            return 3
    return _etl("status", arguments)


def verify(arguments: Sequence[str]) -> int:
    return _etl("verify", arguments)


def reset(arguments: Sequence[str]) -> int:
    return _etl("reset", arguments)


def discover(arguments: Sequence[str]) -> int:
    return _etl("discover", arguments)


def dbt_run(arguments: Sequence[str]) -> int:
    from etl.transform.project import WITHOUT_TESTS  # noqa: PLC0415

    return _dbt("build", [*WITHOUT_TESTS, *arguments])


def dbt_test(arguments: Sequence[str]) -> int:
    return _dbt("test", arguments)


def pipeline(_: Sequence[str]) -> int:
    from deploy.local.summary import Timings, print_summary  # noqa: PLC0415
    from etl.cli import execute_run  # noqa: PLC0415 so that each command imports only what it needs
    from etl.config import load_settings  # noqa: PLC0415
    from etl.transform import project  # noqa: PLC0415

    _say("1/4 databases")
    databases = open_databases()
    _say("2/4 source data")
    _seed_if_empty(databases)
    _say("3/4 source to raw")
    started = time.monotonic()
    result = execute_run(load_settings(databases.environment))
    replicated = time.monotonic()
    if result.has_failures:
        failed = [table.table_name for table in result.tables if table.error]
        raise _failed_tables(failed)
    _say("4/4 raw to marts")
    program = "make psql ROLE=transformer" if databases.is_target_embedded else project.PROGRAM
    project.build(databases.environment, program=program)
    timings = Timings(replicate=replicated - started, build=time.monotonic() - replicated)
    print_summary(databases, result, timings)
    return 0


def freshness(_: Sequence[str]) -> int:
    from etl.transform import project  # noqa: PLC0415

    print("\n".join(project.check_freshness(open_databases().environment)))
    return 0


def docs(arguments: Sequence[str]) -> int:
    from etl.transform import project  # noqa: PLC0415

    folder = Path(arguments[0]) if arguments else project.DOCS_FOLDER
    page = project.write_docs(open_databases().environment, folder)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def manifest(_: Sequence[str]) -> int:
    """Write the manifest from which Airflow creates a task for each model; connect to no database."""
    from etl.transform import project  # noqa: PLC0415

    print(project.write_manifest())
    return 0


def psql(arguments: Sequence[str]) -> int:
    """Open psql on the embedded warehouse as `analyst`, or as ROLE, else on TARGET_DATABASE_URL.

    The password is passed in the environment, not as an argument.
    """
    role = os.environ.get("ROLE") or "analyst"
    if role not in PSQL_ROLES:
        raise ConfigurationError(f"ROLE is {role!r}: expected one of {', '.join(PSQL_ROLES)}")
    databases = open_databases()
    url = databases.urls.get(f"{role.upper()}_DATABASE_URL") or databases.urls["TARGET_DATABASE_URL"]
    parts = read_url(url, "TARGET_DATABASE_URL")
    given = {PSQL_VARIABLES[part]: value for part, value in parts.items() if part in PSQL_VARIABLES}
    variables = {**os.environ, "PGDATABASE": TARGET_NAME, **given}
    program = str(_find_psql(variables))
    os.execve(program, [program, *arguments], variables)  # noqa: S606 it looks for itself by its first argument


def _find_psql(variables: Mapping[str, str]) -> Path:
    """Return the psql to run: for TLS the installed one, because that of the embedded servers does not support it."""
    if variables.get("PGSSLMODE", "prefer") in WITHOUT_TLS:
        return find_binaries(18, choose_home(CHECKOUT)) / "bin" / "psql"
    found = shutil.which("psql")
    if found is None:
        raise ConfigurationError(
            f"sslmode is {variables['PGSSLMODE']}, and the psql of the embedded servers does not support TLS: install "
            "psql (on Debian: apt-get install postgresql-client)"
        )
    return Path(found)


def _source_db(command: str, arguments: Sequence[str], databases: Databases) -> int:
    from source_db.__main__ import main as source_db  # noqa: PLC0415

    os.environ.update(databases.urls)
    return source_db([command, *arguments])


def _etl(command: str, arguments: Sequence[str]) -> int:
    from etl.cli import main as etl  # noqa: PLC0415

    os.environ.update(open_databases().urls)
    return etl([command, *arguments])


def _dbt(command: str, arguments: Sequence[str]) -> int:
    from etl.transform import project  # noqa: PLC0415

    return project.run(open_databases().environment, [command, *arguments])


def _stop_airflow() -> None:
    """Stop Airflow, if it is running, before its databases."""
    if airflow_server.stop(airflow_server.find_airflow()):
        print("airflow: stopped")


def _seed_if_empty(databases: Databases) -> None:
    from source_db import seed as seeding  # noqa: PLC0415

    if not databases.is_source_embedded:
        _say("the source is your own database: it is only read")
        return
    url = databases.urls["SOURCE_ADMIN_DATABASE_URL"]
    if not seeding.is_empty(url):
        _say("the source already has data")
        return
    counts = seeding.load(url)
    _say(f"seeded {sum(counts.values()):,} rows in {len(counts)} tables")


def _failed_tables(names: Sequence[str]) -> EtlError:
    return EtlError(f"the marts were not built, because tables failed: {', '.join(names)}; the lines above say why")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "up": up,
    "airflow": airflow,
    "airflow-down": airflow_down,
    "down": down,
    "clean": clean,
    "seed": seed,
    "simulate": simulate,
    "extract": extract,
    "status": status,
    "verify": verify,
    "reset": reset,
    "discover": discover,
    "dbt-run": dbt_run,
    "dbt-test": dbt_test,
    "pipeline": pipeline,
    "freshness": freshness,
    "docs": docs,
    "manifest": manifest,
    "psql": psql,
}

if __name__ == "__main__":
    sys.exit(main())
