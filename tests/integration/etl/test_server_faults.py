"""Faults of servers and disks: restarted and crashed in mid-run, and a target without room.

After each, one more run makes both sides equal and leaves nothing behind.
"""

import os
import pwd
import random
import subprocess
from contextlib import closing

import psycopg2
import pytest

from deploy.local import servers
from deploy.local.servers import Server
from etl.database_url import DatabaseUrl
from etl.errors import UnavailableError
from tests.integration.etl.faults import (
    FIRST_IN_ONE,
    FIRST_IN_RANGES,
    MARGIN_BYTES,
    MERGE,
    SIDES,
    Proxy,
    assert_whole,
    crash,
    create_database,
    execute,
    has_no_sessions,
    port_of,
    stock,
    stop_fast,
    through,
    touch_orders,
)
from tests.results import pick

MAJORS = {"source": 16, "target": 18}
# After a crash, autovacuum drops what is left of temporary tables.
SETTINGS = {"fsync": "off", "shared_buffers": "32MB", "max_connections": "30", "autovacuum_naptime": "1s"}
SMALL_DISK_BYTES = 64 << 20
NOT_TESTED_WITHOUT_DISK = "not tested is that a target without room keeps what was committed, and goes on with room"
# What `orders` weigh with long notes: more than lies in the buffers of a connection when its server goes.
WIDE_BYTES = 6_800_000


@pytest.fixture(scope="module", params=SIDES)
def own_server(request, servers_home):
    """A server of one side that a test may stop."""
    side = request.param
    server = Server(
        name=f"own-{side}",
        folder=servers_home / f"own-{side}",
        port=servers.free_port(),
        major=MAJORS[side],
        settings=SETTINGS,
    )
    try:
        server.start()
        yield side, server
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("phase", "stop"),
    [(FIRST_IN_ONE, crash), (FIRST_IN_RANGES, stop_fast), (MERGE, crash)],
)
def test_server_restarted_during_copy_is_waited_for_or_named(
    own_server, source_url, target_url, replicate_between, create_orders, insert_orders, phase, stop, wait_until
):
    """When it is the source, the run goes on; when it is the target, the run has lost its lock: the next goes on."""
    side, server = own_server
    own_url = create_database(server)
    urls = (own_url, target_url) if side == "source" else (source_url, own_url)
    shop = replicate_between(*urls)
    create_orders(shop, 1000)
    stock(shop, insert_orders)
    shop.on_source("update orders set note = repeat(md5(note), 20)")
    if phase == MERGE:
        shop.run()
        touch_orders(shop)
    shop.configure({"defaults": {"batch_rows": 500}})
    changes = {"load_range_blocks": 64} if phase == FIRST_IN_RANGES else {}
    limit = random.Random(f"{side} {phase} {stop.__name__}").randint(MARGIN_BYTES, WIDE_BYTES // 4)

    def restart(_):
        stop(server, wait_until)
        server.start()

    with closing(Proxy(port_of(own_url), limit, restart, from_clients=side == "target")) as proxy:
        proxied = DatabaseUrl(through(proxy, own_url))
        if side == "source":
            run = shop.run(**changes, source_url=proxied)
            assert [table.error for table in run.tables] == [None, None]
            assert max(table.retries for table in run.tables) >= 1
        else:
            with pytest.raises(UnavailableError, match="the target"):
                shop.run(**changes, target_url=proxied)
        assert proxy.has_acted.is_set()
    again = replicate_between(*urls)
    wait_until(lambda: has_no_sessions(again))
    finished = again.command("run")
    assert finished.returncode == 0, finished.stderr
    assert_whole(again, wait_until)


class SmallDisk:
    """A folder that holds little, and a file in it that takes up most of the room."""

    def __init__(self, folder):
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, free_bytes):
        found = os.statvfs(self.folder)
        size = found.f_bavail * found.f_frsize - free_bytes
        assert size > 0
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def make_room(self):
        self._filler.unlink()


@pytest.fixture
def target_server(embedded_target_server):
    """The embedded server: one in a container does not see the small disk."""
    return embedded_target_server


@pytest.fixture
def small_disk(servers_home):
    """A disk that a test can fill: a tmpfs, which takes root and the right to mount, as few containers give it."""
    if os.getuid() != 0:
        pytest.skip(f"only root can mount a small disk; {NOT_TESTED_WITHOUT_DISK}")
    folder = servers_home / "small-disk"
    folder.mkdir()
    owner = pwd.getpwnam(servers.UNPRIVILEGED_USER)
    options = f"size={SMALL_DISK_BYTES},mode=755,uid={owner.pw_uid},gid={owner.pw_gid}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()}); {NOT_TESTED_WITHOUT_DISK}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def quiet_server(target_server, wait_until):
    """The target's server without autovacuum.

    Vacuuming a catalog makes the next session write the cache of catalogs, for which a full disk has no room.
    """
    is_at_work = "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'"
    with closing(psycopg2.connect(target_server.url())) as control:
        control.autocommit = True
        execute(control, "alter system set autovacuum = off")
        execute(control, "select pg_reload_conf()")
        try:
            wait_until(lambda: execute(control, is_at_work) == [(0,)])
            yield target_server
        finally:
            execute(control, "alter system reset autovacuum")
            execute(control, "select pg_reload_conf()")


@pytest.fixture
def cramped(small_disk, quiet_server, source_url, replicate_between, create_orders, insert_orders):
    """A replication into a database on the small disk; its table without watermark has been loaded."""
    place = small_disk.folder / "tablespace"
    place.mkdir(mode=0o700)
    owner = pwd.getpwnam(servers.UNPRIVILEGED_USER)
    os.chown(place, owner.pw_uid, owner.pw_gid)
    with closing(psycopg2.connect(quiet_server.url())) as control:
        control.autocommit = True
        execute(control, f"create tablespace small location '{place}'")
        try:
            shop = replicate_between(source_url, create_database(quiet_server, "tablespace small"))
            create_orders(shop, 1000)
            stock(shop, insert_orders)
            shop.run_one("tags")
            psycopg2.connect(shop.target_url).close()  # writes the cache of catalogs, if it is not there
            yield shop
        finally:
            (name,) = shop.on_target("select current_database()")[0]
            execute(control, f"drop database {name} with (force)")
            execute(control, "drop tablespace small")


FREE_BYTES = 500_000


def run_on_full_disk(shop, small_disk, *table_names, **changes):
    """Run with less room than the orders need, one table at a time."""
    small_disk.fill(free_bytes=FREE_BYTES)
    run = shop.run(*table_names, parallel_tables=1, max_attempts=2, **changes)
    orders = run.tables[0]
    assert pick(orders, "table_name", "status", "retries") == ("orders", "failed", 1)
    assert orders.error.startswith("public.orders: the target answered: could not extend file")
    assert "No space left on device" in orders.error
    assert orders.error.endswith("(SQLSTATE 53100): free or add disk space on the target")
    assert shop.on_target("select error from etl.table_runs where status = 'failed'") == [(orders.error,)]
    assert shop.on_target("select error from etl.runs where status = 'failed'") == [("failed: orders",)]
    return run


def test_first_load_on_a_full_disk_leaves_nothing(cramped, small_disk, wait_until):
    cramped.on_source("insert into tags values (0, 'new')")

    run = run_on_full_disk(cramped, small_disk)

    assert run.tables[1].status == "succeeded"
    assert cramped.on_target("select label from raw.tags where tag_id = 0") == [("new",)]
    assert cramped.on_target("select to_regclass('raw.orders')") == [(None,)]
    small_disk.make_room()
    cramped.run()
    assert_whole(cramped, wait_until)


def test_load_in_ranges_resumes_after_a_full_disk(cramped, small_disk, wait_until):
    run_on_full_disk(cramped, small_disk, "orders", load_range_blocks=8)

    ((next_block,),) = cramped.on_target("select next_block from etl.loads")
    assert next_block > 0
    assert cramped.on_target("select to_regclass('raw.orders')") == [(None,)]
    small_disk.make_room()
    orders = cramped.run_one("orders", load_range_blocks=8)
    assert 0 < orders.counts.read < cramped.on_source("select count(*) from orders")[0][0]
    assert_whole(cramped, wait_until)


def test_batches_merged_before_a_full_disk_stay(cramped, small_disk, wait_until):
    cramped.run()
    cramped.configure({"defaults": {"batch_rows": 500}})
    touch_orders(cramped)

    run = run_on_full_disk(cramped, small_disk, "orders")

    ((merged,),) = cramped.on_target("select count(*) from raw.orders where note like '%!'")
    assert merged == run.tables[0].counts.updated > 0
    assert merged % 500 == 0
    small_disk.make_room()
    cramped.run()
    assert_whole(cramped, wait_until)
