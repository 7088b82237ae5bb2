"""What is no URL, or one that a password has moved, is refused without a word of the password."""

import pytest

from etl.database_url import DatabaseUrl, make_url, read_url
from etl.errors import ConfigurationError


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:p@s3cret@host/db",
        "postgresql://user:a?p@s3cret@host/db",
        "postgresql://user:s3cr/et@host/db",
        "postgresql://user:5432/s3cret@host/db",
        "postgresql://user:s3cret",
        "postgresql://user:s3cret/db",
        "postgres://user:s3cret?x/y@host/db",
        "postgresql://user:%zzs3cret@host/db",
        "postgresql://user:s3cret@host:54x32/db",
        "postgresql://user:s3cret@host/db?nope=1",
        "postgresql://user:s3cret@[::1/db",
        "postgresql:/user:s3cret@host/db",
        "mysql://user:s3cret@host/db",
        "s3cret",
        "host=host password=my s3cret",
        "host=host password='s3cret",
        "host=host port=s3cret",
    ],
)
def test_invalid_url_is_rejected_without_showing_it(text):
    with pytest.raises(
        ConfigurationError, match=r"^SOURCE is not a libpq URL: expected .* percent-encoded$"
    ) as refused:
        read_url(text, "SOURCE")

    assert "s3cr" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("pgbouncer=true", "pgbouncer (remove it)"),
        ("schema=shop", "schema (name the schema in tables.yml, with `schema:`)"),
        ("sslmode=require&ssl=true&cursor=dict", "cursor (remove it), ssl (use sslmode=verify-full)"),
    ],
)
def test_parameters_of_other_programs_are_named(query, told):
    with pytest.raises(ConfigurationError) as refused:
        read_url(f"postgresql://user:s3cret@host/db?{query}", "SOURCE")

    assert str(refused.value) == f"SOURCE has parameters that libpq does not know: {told}"
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("postgresql://user:p%40s%2Fs3cret@host:1/db", "host:1/db"),
        ("postgresql://user:s3c?ret@host/db", "host:5432/db"),
        ("postgresql://user@tenant.example/db?options=-csearch_path%3Da@b", "tenant.example:5432/db"),
        ("postgresql://user:s3cret@one:1,two:2/db?target_session_attrs=primary", "one,two:1,2/db"),
        ("postgresql://user:s3cret@%2Fvar%2Frun/db", "/var/run:5432/db"),
        ("postgresql://user:s3cret@%40tidemark/db", "@tidemark:5432/db"),
        ("postgresql://user:s3cret@host/a%40b", "host:5432/a@b"),
        ("postgresql://", "localhost:5432/"),
        ("host=host password=a://b/c@s3cret dbname=db", "host:5432/db"),
    ],
)
def test_url_is_shown_as_its_address(text, address):
    read_url(text, "SOURCE")

    assert DatabaseUrl(text).address == address
    assert "s3c" not in repr(DatabaseUrl(text))


@pytest.mark.parametrize(
    "parts",
    [
        {"user": "loader", "password": "p@ss:/word %", "host": "db.example", "port": "5434", "dbname": "warehouse"},
        {"user": "user@tenant", "password": "?#&=", "host": "::1", "port": "5432", "dbname": "my base"},
        {
            "user": "loader",
            "host": "/var/run",
            "dbname": "a/b",
            "sslmode": "verify-full",
            "sslrootcert": "/a b/root.crt",
        },
        {"host": "db.example", "dbname": "w"},
        {},
    ],
)
def test_url_is_built_from_its_parts_and_read_back(parts):
    assert read_url(make_url(parts), "SOURCE") == parts
