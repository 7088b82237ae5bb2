"""Sessions with TLS: the server's certificate is verified by etl, dbt, psql and all else that reads a URL.

The embedded servers have no TLS, so these tests are played where Docker answers. The server takes no session without.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest

from etl.transform.project import profile_variables
from tests.certificates import make_authority, make_certificate
from tests.integration.dbt.built_shop import CHECKOUT, Shop
from tests.servers import CONTAINER_SETTINGS, find_obstacle, serve_image

HOST = "localhost"  # is in the certificate; 127.0.0.1, where the server listens as well, is not
TLS_SETTINGS = {
    "ssl": "on",
    "ssl_cert_file": "/tls/server.crt",
    "ssl_key_file": "/tls/owned.key",
    "ssl_ca_file": "/tls/authority.crt",
    "hba_file": "/tls/pg_hba.conf",
}
HBA = b"local all all trust\nhostssl all certified all cert\nhostssl all all all scram-sha-256\n"
# The server insists on owning its key, and nobody knows the number of its user in an image.
START = 'install -o postgres -m 600 /tls/server.key /tls/owned.key && exec docker-entrypoint.sh "$@"'
DBT = str(Path(sys.executable).with_name("dbt"))


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """The authority that signed the server's certificate, and another one, by folder."""
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_authority(folder, name) for name in ("right", "wrong")}, folder


@pytest.fixture(scope="module")
def server(authorities, pytestconfig):
    """A server that takes sessions with TLS only."""
    image = pytestconfig.getoption("--target-image")
    obstacle = find_obstacle((image,))
    if pytestconfig.getoption("--servers") == "embedded" or obstacle:
        pytest.skip(f"the embedded servers have no TLS ({obstacle or 'no containers were asked for'}): not tested is "
                    "that certificates are verified")  # fmt: skip
    known, folder = authorities
    made = make_certificate(folder, known["right"], HOST)
    files = {
        "/tls/server.crt": made.certificate.read_bytes(),
        "/tls/server.key": made.key.read_bytes(),
        "/tls/authority.crt": known["right"].certificate.read_bytes(),
        "/tls/pg_hba.conf": HBA,
    }
    settings = {**CONTAINER_SETTINGS, **TLS_SETTINGS}
    with serve_image(image, settings, command=("sh", "-c", START, "sh"), files=files) as served:
        yield served


@pytest.fixture(scope="module")
def url_with(server, authorities):
    """A function that returns the URL of a database with these parameters."""

    def make(database="postgres", host=HOST, authority="right", **parameters):
        root = authorities[0][authority].certificate if authority else authorities[1] / "missing.crt"
        given = {"sslmode": "verify-full", "sslrootcert": str(root), **parameters}
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items() if value)
        return server.url(database).replace(f"@{server.host}:", f"@{host}:") + f"?{text}"

    return make


@pytest.fixture(scope="module")
def shop(url_with, tmp_path_factory):
    """A shop whose source and warehouse are both reached with TLS, its certificate verified in full."""
    with closing(psycopg2.connect(url_with())) as control, control.cursor() as cursor:
        control.autocommit = True
        for name in ("shop", "warehouse"):
            cursor.execute(f"create database {name} template template0")
    return Shop(
        source_url=url_with("shop"),
        target_url=url_with("warehouse"),
        folder=tmp_path_factory.mktemp("shop"),
        more=(("SOURCE_ADMIN_DATABASE_URL", url_with("shop")),),
    )


REFUSALS = {
    "another authority": ({"authority": "wrong"}, "certificate verify failed", "name the file of the authority that"),
    "another host": ({"host": "127.0.0.1"}, "does not match host name", "connect by a name that is in it"),
    "no file": ({"authority": None}, "root certificate file", "must name a file with the authority's certificate"),
    "no TLS": ({"sslmode": "disable", "authority": None}, "no encryption", "add sslmode=verify-full and sslrootcert"),
    "a wrong mode": ({"sslmode": "full"}, "sslmode value", "verify-ca and verify-full"),
}


def run(*command, **variables):
    return subprocess.run(
        [sys.executable, *command],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_pipeline_works_with_verified_certificates(shop):
    """No session was without TLS, for the server takes none."""
    shop.succeed("seed", "--scale", "0.02")
    shop.fill()
    shop.succeed("verify")

    assert shop.query("select count(*) > 0 from marts.fct_orders") == [(True,)]
    assert shop.query("select ssl from pg_stat_ssl where pid = pg_backend_pid()") == [(True,)]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("case", REFUSALS)
def test_unverifiable_server_is_rejected_with_the_next_step(shop, url_with, side, case):
    parameters, found, next_step = REFUSALS[case]
    name = {"source": "shop", "target": "warehouse"}[side]
    wrong = {f"{side.upper()}_DATABASE_URL": url_with(name, **parameters)}

    finished = run("-m", "etl", "run", **{**shop.environment, **wrong})

    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr
    (line,) = finished.stderr.splitlines()
    assert re.match(rf"etl: cannot connect to the {side} at (localhost|127\.0\.0\.1):\d+/{name}: .*{found}", line)
    assert next_step in line
    assert "docs/configuration.md, TLS" in line
    assert "disable server certificate verification" not in line  # as libpq advises


def debug(url, folder):
    """Have dbt alone connect, as its profile says; return the finished process."""
    return subprocess.run(
        [DBT, "debug", "--connection", "--project-dir", "dbt", "--profiles-dir", "dbt"],
        cwd=CHECKOUT,
        env={**os.environ, **profile_variables(url), "DBT_LOG_PATH": str(folder), "DBT_TARGET_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dbt_rejects_what_etl_rejects(shop, url_with, tmp_path):
    assert debug(shop.target_url, tmp_path).returncode == 0
    for case in ("another authority", "another host", "no file", "no TLS"):
        parameters, found, _ = REFUSALS[case]

        finished = debug(url_with("warehouse", **parameters), tmp_path)

        assert finished.returncode != 0
        assert found in finished.stdout, finished.stdout


def test_dbt_takes_missing_url_parts_from_libpq_variables(shop, authorities, url_with, tmp_path, monkeypatch):
    """A profile that said prefer would have dbt verify nothing where etl does."""
    plain = url_with("warehouse", sslmode="", sslrootcert="")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    for authority, code in (("right", 0), ("wrong", 3)):
        monkeypatch.setenv("PGSSLROOTCERT", str(authorities[0][authority].certificate))  # the source's URL has its own

        replicated = run("-m", "etl", "run", **{**shop.environment, "TARGET_DATABASE_URL": plain})
        connected = debug(plain, tmp_path)

        assert replicated.returncode == code, replicated.stderr
        assert (connected.returncode == 0) == (code == 0)
        assert ("certificate verify failed" in connected.stdout) == (code == 3)


def test_role_without_password_uses_its_own_certificate(shop, authorities, url_with):
    known, folder = authorities
    client = make_certificate(folder, known["right"], "certified")
    stranger = make_certificate(folder, known["wrong"], "stranger")
    shop.query("create role certified superuser login")
    url = re.sub(r"//[^@]*@", "//certified@", url_with("warehouse"))
    for shown, is_refused in ((client, False), (stranger, True)):
        given = f"&sslcert={quote(str(shown.certificate))}&sslkey={quote(str(shown.key))}"
        for command in (("-m", "etl", "run"), ("-m", "deploy.local", "dbt-run", "--select", "stg_orders")):
            finished = run(*command, **{**shop.environment, "TARGET_DATABASE_URL": url + given})
            assert (finished.returncode != 0) == is_refused, finished.stdout + finished.stderr


@pytest.mark.skipif(shutil.which("psql") is None, reason="not tested is that make psql verifies: psql is not installed")
def test_psql_rejects_what_etl_rejects(shop, url_with):
    command = ("-m", "deploy.local", "psql", "-Atc", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")

    right = run(*command, **shop.environment)
    wrong = run(*command, **{**shop.environment, "TARGET_DATABASE_URL": url_with("warehouse", authority="wrong")})

    assert (right.returncode, right.stdout) == (0, "t\n"), right.stderr
    assert wrong.returncode == 2
    assert "certificate verify failed" in wrong.stderr


def test_psql_without_tls_is_rejected_before_it_starts(shop, tmp_path):
    finished = run("-m", "deploy.local", "psql", **{**shop.environment, "PATH": str(tmp_path)})

    assert finished.returncode == 2
    assert "sslmode is verify-full, and the psql of the embedded servers does not support TLS" in finished.stderr
