"""One dbt command at a time works on a warehouse."""

from contextlib import closing

import psycopg2
import pytest

from etl.errors import LockHeldError
from etl.transform.lock import build_lock

HASTY = {"ETL_LOCK_WAIT_SECONDS": "0.2"}


def ask(url, statement, options=None):
    with closing(psycopg2.connect(url, options=options)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def test_a_second_build_waits_and_is_refused(target_url):
    refusal = r"another dbt command is at work on this warehouse; waited 0\.2 s"
    with build_lock(HASTY, target_url), pytest.raises(LockHeldError, match=refusal):
        build_lock(HASTY, target_url).__enter__()
    with build_lock(HASTY, target_url):
        pass


def test_sessions_of_a_build_notice_that_it_is_gone(target_url):
    with build_lock(HASTY, target_url) as variables:
        found = ask(target_url, "show client_connection_check_interval", variables["PGOPTIONS"])

    assert found == [("500ms",)]


def test_the_lock_keeps_no_row_version(target_url):
    holder = "select state, backend_xmin from pg_stat_activity where application_name = 'tidemark' and datname = %s"
    name = target_url.rpartition("/")[2]
    with build_lock(HASTY, target_url):
        found = ask(target_url, holder.replace("%s", f"'{name}'"))

    assert found == [("idle in transaction", None)]
