"""Poolers: one that gives a session to others between transactions is refused by every command, which leaves it as is.

A pool in session mode serves all commands, and gets each session back as it was.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

import etl
from deploy.local.servers import HOST, SUPERUSER
from etl.database_url import DatabaseUrl
from etl.errors import UnavailableError
from etl.model import RunOptions
from etl.postgres.sessions import MARK_NAME
from tests.integration.etl.faults import execute, open_as_nobody
from tests.servers import DatabaseServer

READ_SETTINGS = f"""
    select pg_backend_pid(), nullif(current_setting('{MARK_NAME}', true), ''), (
        select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where source = 'session'
            and name not in ('application_name', 'client_encoding', 'transaction_isolation', 'transaction_read_only')
    )
"""


@contextmanager
def open_pooler(server: DatabaseServer, folder: Path, port: int, pool_mode: str, *more: str) -> Iterator[None]:
    """Run PgBouncer in front of a server, with the server's own password; its files are in a folder that it reaches."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip(
            "pgbouncer is not installed (apt-get install pgbouncer): not tested is that a pool in session mode serves "
            "a run, and that one in transaction mode is refused"
        )
    users = folder / f"pgbouncer_{port}.txt"
    users.write_text(f'"{SUPERUSER}" "{server.password()}"\n')
    settings = folder / f"pgbouncer_{port}.ini"
    lines = [
        "[databases]",
        f"* = host={HOST} port={server.port}",
        "[pgbouncer]",
        f"listen_addr = {HOST}",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = scram-sha-256",
        f"auth_file = {users}",
        f"pool_mode = {pool_mode}",
        *more,
    ]
    settings.write_text("\n".join(lines) + "\n")
    with open_as_nobody([program, str(settings)]):
        yield


@pytest.fixture(params=["source", "target"])
def pool(request, orders, source_server, target_server, servers_home, free_port, wait_until):
    """A function that puts a pooler of some mode before one side of the orders, and returns the change of settings."""
    side = request.param
    server = {"source": source_server, "target": target_server}[side]
    direct = {"source": orders.source_url, "target": orders.target_url}[side]

    def is_ready(url):
        try:
            psycopg2.connect(url).close()
        except psycopg2.OperationalError:
            return False
        return True

    with ExitStack() as poolers:

        def put_pooler_before(pool_mode, *more):
            port = free_port()
            poolers.enter_context(open_pooler(server, servers_home, port, pool_mode, *more))
            url = direct.replace(f":{server.port}/", f":{port}/")
            wait_until(lambda: is_ready(url))
            return {f"{side}_url": DatabaseUrl(url)}

        yield put_pooler_before


def reset(settings):
    etl.run(settings, ("orders",), options=RunOptions(full_refresh=True))


COMMANDS = {"run": etl.run, "reset": reset, "status": etl.read_status, "verify": etl.verify, "discover": etl.discover}
USES = [
    (side, command)
    for side in ("source", "target")
    for command in COMMANDS
    if (side, command) != ("target", "discover")
]


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize(("pool", "command"), USES, indirect=["pool"])
def test_command_leaves_a_shared_session_as_it_was(orders, pool, command, mode):
    """The application's pool has one session, which the command meets."""
    orders.run_one("orders")
    before = orders.rows("orders")
    through_pooler = pool(mode, "default_pool_size = 1")
    ((name, url),) = through_pooler.items()
    side = name.removesuffix("_url")
    with closing(psycopg2.connect(str(url))) as application:
        application.autocommit = True
        usual = execute(application, READ_SETTINGS)

        with pytest.raises(UnavailableError) as refusal:
            COMMANDS[command](orders.settings_with(**through_pooler))

        found = execute(application, READ_SETTINGS)
    assert str(refusal.value) == (
        f"the {side} is reached through a pooler in transaction or statement mode, which loses a session's settings "
        f"and locks between transactions: point {side.upper()}_DATABASE_URL at the server itself, or at a pool in "
        "session mode"
    )
    assert refusal.value.exit_code == 3
    assert not refusal.value.is_transient
    assert found == usual
    assert usual[0][1:] == (None, None)
    assert orders.rows("orders") == before


@pytest.mark.parametrize("sessions", range(2, 7))
def test_round_robin_pooler_is_rejected_with_any_session_count(orders, pool, sessions):
    through_pooler = pool("transaction", "server_round_robin = 1")
    (url,) = through_pooler.values()
    with ExitStack() as opened:
        clients = [opened.enter_context(closing(psycopg2.connect(url))) for _ in range(sessions)]
        for client in clients:
            execute(client, "select 1")
        for client in clients:
            client.commit()

    with pytest.raises(UnavailableError, match="a pooler in transaction or statement mode"):
        orders.run(**through_pooler)

    assert orders.on_target("select to_regclass('raw.orders')") == [(None,)]


@pytest.mark.parametrize(("pool", "command"), USES, indirect=["pool"])
def test_session_mode_gets_its_sessions_back_as_they_were(orders, pool, command):
    """Even a pool that does not reset them itself."""
    orders.run_one("orders")
    orders.on_source("insert into orders (total, note) values (1, 'another')")
    through_pooler = pool("session", "server_reset_query =")
    settings = orders.settings_with(**through_pooler)
    (url,) = through_pooler.values()

    COMMANDS[command](settings)

    with ExitStack() as opened:
        clients = [opened.enter_context(closing(psycopg2.connect(str(url)))) for _ in range(5)]
        found = [execute(client, READ_SETTINGS)[0][1:] for client in clients]
    assert found == [(None, None)] * 5
    if command in ("run", "reset"):
        source, raw = orders.rows("orders")
        assert len(source) == 1001
        assert source == raw


def test_pool_without_room_for_a_second_session_is_named(orders, pool):
    through_pooler = pool("session", "default_pool_size = 1")

    with pytest.raises(UnavailableError, match=r"gives no second session: .* raise the size of the pool") as refusal:
        orders.run(**through_pooler, connect_timeout_seconds=2)

    assert not refusal.value.is_transient
    assert orders.on_target("select to_regclass('raw.orders')") == [(None,)]
