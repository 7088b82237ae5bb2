"""What libpq says of TLS is followed by a next step, and its advice to verify nothing is left out."""

import pytest

from etl.postgres.tls import find_next_step, without_advice
from etl.transform.project import profile_variables

MISSING = (
    'connection to server at "db" failed: root certificate file "/x" does not exist Either provide the file, use the '
    "system's trusted roots with sslrootcert=system, or change sslmode to disable server certificate verification."
)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("SSL error: certificate verify failed", "its certificate is not signed by an authority in sslrootcert"),
        ('server certificate for "a" does not match host name "b"', "connect by a name that is in it"),
        (MISSING, "sslrootcert must name a file with the authority's certificate"),
        ('could not read certificate file "/x"', "sslcert and sslkey must name the files"),
        ('private key file "/x" has group or world access', "that only its owner can read"),
        ("server does not support SSL, but SSL was required", "set ssl = on there"),
        ("FATAL: no pg_hba.conf entry for host, no encryption", "add sslmode=verify-full and sslrootcert"),
        ('invalid sslmode value: "full"', "sslmode is one of"),
    ],
)
def test_each_rejection_has_its_next_step(text, step):
    assert step in find_next_step(text)


@pytest.mark.parametrize("text", ["connection refused", "FATAL: password authentication failed", "the database system"])
def test_errors_unrelated_to_tls_have_no_next_step(text):
    assert find_next_step(text) is None
    assert without_advice(text) == text


def test_advice_to_disable_verification_is_removed():
    assert without_advice(MISSING).endswith('root certificate file "/x" does not exist')


def test_dbt_uses_the_url_and_otherwise_libpq_variables(monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", "/system.crt")
    monkeypatch.delenv("PGSSLCERT", raising=False)

    said = profile_variables("postgresql://u@h/d?sslmode=verify-ca&sslrootcert=/own.crt&sslcert=/c.crt&sslkey=/c.key")
    left_out = profile_variables("postgresql://u@h/d")

    names = ("DBT_SSLMODE", "DBT_SSLROOTCERT", "DBT_SSLCERT", "DBT_SSLKEY")
    assert [said[name] for name in names] == ["verify-ca", "/own.crt", "/c.crt", "/c.key"]
    assert [left_out[name] for name in names[:3]] == ["verify-full", "/system.crt", ""]
    monkeypatch.delenv("PGSSLMODE")
    assert profile_variables("postgresql://u@h/d")["DBT_SSLMODE"] == "prefer"
