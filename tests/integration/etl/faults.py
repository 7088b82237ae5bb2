"""What tests of faults share: what a run works on, the proxies and crashes that break it, and what may be left."""

import itertools
import os
import pwd
import re
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import psycopg2

from deploy.local.servers import UNPRIVILEGED_USER
from etl.ledger import runs

CHUNK_BYTES = 1 << 16
# Rows of `orders` in the shop, and what they weigh on the way; all else that a run says is less than the margin.
COPIED_ROWS = 9_000
COPIED_BYTES = 780_000
MARGIN_BYTES = 100_000
SIDES = ("source", "target")
FIRST_IN_ONE, FIRST_IN_RANGES, MERGE = "a first load in one transaction", "a first load in ranges", "merging batches"
_numbers = itertools.count(1)

COUNT_SESSIONS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
        and (application_name = 'tidemark' or xact_start is not null)
"""
COUNT_LOCKS = """
    select count(*) from pg_locks as l
    left join pg_stat_activity as a on a.pid = l.pid
    where l.pid is distinct from pg_backend_pid() and a.backend_type is distinct from 'autovacuum worker'
        and l.database = (select oid from pg_database where datname = current_database())
"""
COUNT_PREPARED = "select count(*) from pg_prepared_xacts where database = current_database()"
COUNT_TEMPORARY = "select count(*) from pg_class where relpersistence = 't'"
COUNT_LOADING = "select count(*) from pg_class where starts_with(relname, '_etl_loading_')"
COUNT_UNFINISHED = """
    select
        (select count(*) from etl.loads),
        (select count(*) from etl.runs where status = 'running'),
        (select count(*) from etl.table_runs where status = 'running')
"""


def execute(connection, statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def open_as_nobody(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    user = pwd.getpwnam(UNPRIVILEGED_USER) if os.getuid() == 0 else None
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    process = subprocess.Popen(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **identity
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def stock(replication, insert_orders):
    insert_orders(replication.source, COPIED_ROWS)
    replication.on_source("create table tags (tag_id int primary key, label text not null)")
    replication.on_source("insert into tags select n, 'tag ' || n from generate_series(1, 2000) as n")


def touch_orders(replication):
    replication.on_source("update orders set note = note || '!', updated_at = clock_timestamp()")


def create_database(server, options=""):
    """Create a database and return its URL."""
    with closing(psycopg2.connect(server.url())) as control:
        control.autocommit = True
        name = f"own_{next(_numbers)}"
        execute(control, f"create database {name} template template0 encoding 'UTF8' {options}")
    return server.url(name)


def stop_fast(server, _):
    assert server.stop(), "expected a server that runs"


def crash(server, wait_until):
    """Stop as pg_ctl does in immediate mode: without a checkpoint, so that the next start recovers."""
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    wait_until(lambda: not (server.data / "postmaster.pid").exists())


def has_no_sessions(replication):
    return replication.on_source(COUNT_SESSIONS) == replication.on_target(COUNT_SESSIONS) == [(0,)]


def assert_whole(replication, wait_until):
    """Both sides are equal, nothing is twice, and nothing is left of any run."""
    names = [row[0] for row in replication.on_source("select tablename from pg_tables where schemaname = 'public'")]
    assert names, "expected tables in the source, found none"
    for name in names:
        source, raw = replication.rows(name)
        assert Counter(raw) - Counter(source) == Counter(), f"rows of raw.{name} that the source has not"
        assert Counter(source) - Counter(raw) == Counter(), f"rows of {name} that raw has not"
    assert_nothing_left(replication, wait_until)


def assert_nothing_left(replication, wait_until):
    """No session, transaction, lock or temporary table on either side, and nothing unfinished in the ledger."""
    wait_until(lambda: has_no_sessions(replication))
    for side, read in (("source", replication.on_source), ("target", replication.on_target)):
        wait_until(lambda read=read: read(COUNT_TEMPORARY) == [(0,)])  # a session drops its own after it has gone
        assert read(COUNT_LOCKS) == [(0,)], f"locks that are left on the {side}"
        assert read(COUNT_PREPARED) == [(0,)], f"prepared transactions that are left on the {side}"
    assert replication.on_target(COUNT_LOADING) == [(0,)], "tables of first loads that are left"
    assert replication.on_target(COUNT_UNFINISHED) == [(0, 0, 0)], "loads, runs, and runs of tables that go on"


def port_of(url):
    return int(re.search(r":(\d+)/", url)[1])


def through(proxy, url):
    return re.sub(r":\d+/", f":{proxy.port}/", url)


class Link:
    """A client's connection and the server's, joined."""

    def __init__(self, client, server):
        self.client, self.server = client, server
        self.is_cut = False
        self.flows = threading.Event()  # cleared: it is open, and passes nothing on
        self.flows.set()

    def cut(self, *, resets):
        """Close both sockets, with a reset or in order; what was on its way is lost with a reset."""
        self.is_cut = True
        self.flows.set()
        for end in (self.client, self.server):
            with suppress(OSError):
                if resets:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD if resets else socket.SHUT_RDWR)  # wakes the reader
            end.close()


class Proxy:
    """Passes bytes on between clients and a server, and calls `act` once, at a moment.

    The moment is when `limit` bytes, or messages, have been passed on from the clients or from the server, over all
    connections; `act` gets the link that carried the last of them.
    """

    def __init__(self, port, limit, act, *, from_clients, in_messages=False):
        self._port, self._act = port, act
        self._left, self._in_messages, self._from_clients = limit, in_messages, from_clients
        self._lock = threading.Lock()
        self._threads = []
        self.links = []
        self.flows = threading.Event()
        self.flows.set()
        self.has_acted = threading.Event()
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flows.set()
        self.cut_all(resets=True)
        for thread in self._threads:
            thread.join()

    def cut_all(self, *, resets):
        for link in list(self.links):
            link.cut(resets=resets)

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            link = Link(client, server)
            self.links.append(link)
            self._start(self._pass_on, link, client, server, self._from_clients)
            self._start(self._pass_on, link, server, client, not self._from_clients)

    def _pass_on(self, link, reads, writes, counts):
        try:
            while chunk := reads.recv(CHUNK_BYTES):
                head = self._count(chunk) if counts else None
                if head is not None:
                    writes.sendall(chunk[:head])
                    self.has_acted.set()
                    self._act(link)
                self.flows.wait()
                link.flows.wait()
                writes.sendall(chunk[head or 0 :])
            writes.shutdown(socket.SHUT_WR)
        except OSError:
            link.cut(resets=False)

    def _count(self, chunk):
        """Return how much of the chunk goes before the moment, None when the moment is not in it."""
        with self._lock:
            before, size = self._left, 1 if self._in_messages else len(chunk)
            self._left -= size
            self.passed += size
        if not 0 < before <= size:
            return None
        return len(chunk) if self._in_messages else before


def make_ledger(replication):
    """Create the ledger, as the first run does, where the source has no tables yet."""
    runs.prepare(replication.target)
