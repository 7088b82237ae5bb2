"""Real servers for every test, started once (tests/servers.py), with a fresh pair of databases for each test."""

import importlib.metadata
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from xdist.remote import Producer

from deploy.local import servers
from tests import commands, examples
from tests.distribution import MOST_PROCESSES, PROCESSES_PER_CORE, Distribution, is_fast, rank
from tests.servers import (
    DEFAULT_IMAGE,
    EMBEDDED,
    KINDS,
    SIDES,
    Choice,
    DatabaseServer,
    choose,
    choose_place,
    create_database,
    drop_database,
)

_choice = pytest.StashKey[Choice]()
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="play the long form of the tests that have one")
    parser.addoption("--fast", action="store_true", help="play the tests that take a minute together")
    parser.addoption(
        "--servers",
        choices=KINDS,
        default=os.environ.get("TEST_SERVERS", "auto"),
        help="where the databases are: containers, embedded servers, or containers where Docker answers (TEST_SERVERS)",
    )
    for side in SIDES:
        variable = f"TEST_{side.upper()}_IMAGE"
        parser.addoption(
            f"--{side}-image",
            default=os.environ.get(variable, DEFAULT_IMAGE),
            help=f"the {side}'s image, where containers are used ({variable}={DEFAULT_IMAGE})",
        )
    parser.addoption("--list-skipped", type=Path, help="write the names of skipped tests to a file, for pytest @FILE")
    parser.addoption("--picture", type=Path, help="where to keep the picture of Airflow, such as docs/airflow.png")


def pytest_configure(config: pytest.Config) -> None:
    examples.register(is_long=config.getoption("--long"))


def pytest_unconfigure() -> None:
    commands.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `--numprocesses auto` starts."""
    return min(PROCESSES_PER_CORE * len(os.sched_getaffinity(0)), MOST_PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Distribution:
    return Distribution(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if not is_fast(item.nodeid)])
        items[:] = [item for item in items if is_fast(item.nodeid)]
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether tests marked `has_long_form` shall play it."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def only_long(is_long: bool) -> None:
    """Skip a test marked `has_long_form` that has no short one."""
    if not is_long:
        # Beside each use stands what shows the same in short.
        pytest.skip("it takes minutes: --long")


def pytest_report_header(config: pytest.Config) -> list[str]:
    has_servers = not all("unit" in Path(argument).parts for argument in config.args)
    return [
        f"databases: {_choose_servers(config) if has_servers else 'none is needed'}",
        "airflow: " + ("installed" if has_airflow() else "not installed, its tests are left out: make test-airflow"),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if listing := config.getoption("--list-skipped"):
        skipped = terminalreporter.stats.get("skipped", [])
        places = sorted({(*report.location[:2], report.nodeid) for report in skipped})  # as they stand in their files
        listing.write_text("".join(f"{name}\n" for _, _, name in places))


def _choose_servers(config: pytest.Config) -> Choice:
    if _choice not in config.stash:
        images = {side: config.getoption(f"--{side}-image") for side in SIDES}
        try:
            config.stash[_choice] = choose(config.getoption("--servers"), images)
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_choice]


def has_airflow() -> bool:
    """Tell whether Airflow is installed, without importing it: it reads its settings, and writes some, on import."""
    try:
        importlib.metadata.version("apache-airflow")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that finds a port nobody listens on."""
    return servers.free_port


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the servers' user reaches, for pytest's own are private; in memory where there is room."""
    place = choose_place()
    if place is None and os.getuid() != 0:
        yield tmp_path_factory.mktemp("servers")
        return
    home = Path(tempfile.mkdtemp(prefix="tidemark-tests-", dir=place or "/var/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def source_server(request: pytest.FixtureRequest, servers_home: Path) -> Iterator[DatabaseServer]:
    yield from _serve("source", request, servers_home)


@pytest.fixture(scope="session")
def target_server(request: pytest.FixtureRequest, servers_home: Path) -> Iterator[DatabaseServer]:
    yield from _serve("target", request, servers_home)


def _serve(side: str, request: pytest.FixtureRequest, home: Path) -> Iterator[DatabaseServer]:
    choice = _choose_servers(request.config)
    if choice.images is None:
        yield request.getfixturevalue(f"embedded_{side}_server")
    else:
        with choice.serve(side, home) as server:
            yield server


@pytest.fixture(scope="session")
def embedded_source_server(servers_home: Path) -> Iterator[DatabaseServer]:
    """An embedded server whatever was chosen, for tests of what it alone has: its version, extensions, programs."""
    with EMBEDDED.serve("source", servers_home) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_target_server(servers_home: Path) -> Iterator[DatabaseServer]:
    """An embedded server whatever was chosen."""
    with EMBEDDED.serve("target", servers_home) as server:
        yield server


def _database(server: DatabaseServer) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    create_database(server, name)
    yield server.url(name)
    drop_database(server, name)


@pytest.fixture
def source_url(source_server: DatabaseServer) -> Iterator[str]:
    """The URL of a fresh, empty source database, as its superuser."""
    yield from _database(source_server)


@pytest.fixture
def target_url(target_server: DatabaseServer) -> Iterator[str]:
    """The URL of a fresh, empty target database, as its superuser."""
    yield from _database(target_server)


@contextmanager
def open_webhook() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that keeps what is posted to it, and the messages."""
    messages = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            messages.append(json.loads(self.rfile.read(length))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Keep) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", messages
        server.shutdown()
        thread.join()


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that keeps what is posted to it, and the messages."""
    with open_webhook() as opened:
        yield opened
