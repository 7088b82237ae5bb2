"""A password is in no argument of a process, no file that is written, no log of a server and no message."""

import re
import threading
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from deploy.local.servers import Server
from tests import commands
from tests.integration.dbt.built_shop import CHECKOUT, is_waited_for, locked

SECRET = "s3cret"  # of every URL below, or the greater part of one
ROLES = ("TARGET_DATABASE_URL", "TRANSFORMER_DATABASE_URL", "ANALYST_DATABASE_URL", "SUPERUSER")
COMMANDS = {
    "etl run": ("-m", "etl", "run"),
    "etl status": ("-m", "etl", "status"),
    "etl discover": ("-m", "etl", "discover"),
    "make seed": ("-m", "deploy.local", "seed"),
    "make pipeline": ("-m", "deploy.local", "pipeline"),
    "make dbt-run": ("-m", "deploy.local", "dbt-run"),
    "make freshness": ("-m", "deploy.local", "freshness"),
    "make psql": ("-m", "deploy.local", "psql", "-c", "select 1"),
}
READERS = ("etl run", "make seed", "make dbt-run", "make psql")  # each reads its URL in a place of its own
MALFORMED = (
    "postgresql://loader:p@s3cret@{address}",
    "postgresql://loader:s3c/s3cret@{address}",
    "postgresql://loader:5432/s3cret@{address}",
    "postgresql://loader:%zzs3cret@{address}",
    "postgresql:/loader:s3cret@{address}",
    "host=127.0.0.1 dbname=warehouse password=my s3cret",
)


def password(url):
    return psycopg2.extensions.parse_dsn(url)["password"]


def passwords(shop, urls):
    return {password(url) for url in (shop.source_url, *(urls[role] for role in ROLES))}


def command_lines():
    """Return the arguments of all processes of this machine, by their id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
    return found


def assert_hidden(secrets, lines):
    assert [line for line in lines if any(secret in line for secret in secrets)] == []


@pytest.mark.parametrize(
    ("command", "side", "table"),
    [
        (("pipeline",), "source", "public.orders"),
        (("extract", "orders"), "source", "public.orders"),
        (("dbt-run", "--select", "fct_payments"), "target", "raw.payments"),
        (("psql", "-c", "select count(*) from raw.payments"), "target", "raw.payments"),
    ],
)
def test_no_password_is_an_argument_of_a_running_process(built, command, side, table, wait_for):
    """The process waits for a table that is held, so that it is looked at while it works."""
    shop, urls = built
    url = {"source": shop.source_url, "target": urls["SUPERUSER"]}[side]
    with closing(psycopg2.connect(url)) as asking, locked(url, table):
        asking.autocommit = True
        process = shop.begin(*command)
        try:
            with asking.cursor() as cursor:
                wait_for(process, cursor, is_waited_for(table))
            found = command_lines()
        finally:
            process.kill()
            process.communicate()

    assert command[0] in found[process.pid] or "psql" in found[process.pid]
    assert any(line.startswith("postgres: ") for line in found.values()), found  # the servers' processes are among them
    assert_hidden(passwords(shop, urls), found.values())


def test_no_password_is_an_argument_during_server_creation(servers_home, free_port):
    server = Server(name="watched", folder=servers_home / "watched", port=free_port(), major=18)
    seen, is_over = set(), threading.Event()

    def look():
        while not is_over.is_set():
            seen.update(command_lines().values())

    watching = threading.Thread(target=look)
    watching.start()
    try:
        server.start()
        secret = server.password()
    finally:
        is_over.set()
        watching.join()
        server.remove()

    assert any("initdb" in line and "--pwfile" in line for line in seen), seen
    assert_hidden([secret], seen)


def test_no_password_is_in_dbt_files_or_server_logs(built):
    """The server logs every statement, also those that made the roles."""
    shop, urls = built
    secrets = [secret.encode() for secret in passwords(shop, urls)]
    logs = [path for path in Path(urls["LOG"]).parent.iterdir() if path.suffix == ".log"]
    files = [path for path in shop.folder.rglob("*") if path.is_file()] + logs

    assert {"dbt.log", "manifest.json", "partial_parse.msgpack", "server.log"} <= {path.name for path in files}
    assert b"alter role" in Path(urls["LOG"]).read_bytes()
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []


def refuse(command, built, **urls):
    """Run a command that cannot connect; return its exit code and what it told."""
    shop, _ = built
    finished = commands.run(*COMMANDS[command], cwd=CHECKOUT, env={**shop.environment, **urls}, timeout=120)
    told = finished.stdout + finished.stderr
    assert SECRET not in told
    assert "Traceback" not in told
    return finished.returncode, told


def all_urls(url):
    names = ("SOURCE_DATABASE_URL", "SOURCE_ADMIN_DATABASE_URL", *ROLES[:2])
    return dict.fromkeys(names, url)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_password_is_reported_without_showing_it(built, command):
    _, urls = built
    wrong = re.sub(r"//([^:]*):[^@]*@", rf"//\1:{SECRET}@", urls["TARGET_DATABASE_URL"])

    code, told = refuse(command, built, **all_urls(wrong))

    assert code in (2, 3)  # 2 is psql's own
    assert 'password authentication failed for user "loader"' in told


@pytest.mark.parametrize("command", COMMANDS)
def test_unreachable_host_is_reported_without_the_password(built, command):
    code, told = refuse(command, built, **all_urls(f"postgresql://loader:{SECRET}@127.0.0.1:1/warehouse"))

    assert code in (2, 3)
    assert "127.0.0.1" in told
    assert "refused" in told


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("command", READERS)
def test_invalid_url_is_rejected_without_showing_it(built, command, url):
    _, urls = built
    address = urls["TARGET_DATABASE_URL"].partition("@")[2]

    code, told = refuse(command, built, **all_urls(url.format(address=address)))

    assert code == 2
    assert "is not a libpq URL: expected postgresql://user:password@host:5432/database" in told
