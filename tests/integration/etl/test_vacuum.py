"""A role vacuums what it owns, and nothing else."""

from contextlib import closing

import psycopg2

from etl.commands.vacuum import vacuum_own_tables
from etl.config import load_target_settings

TABLES = """
    create schema raw;
    create schema elsewhere;
    create table raw.orders as select generate_series(1, 1000) as order_id;
    create table raw.of_another as select 1 as a;
    create table elsewhere.orders as select 1 as a;
    alter table raw.of_another owner to pg_monitor;
"""
COUNTS = (
    "select relname, reltuples from pg_class where relname in ('orders', 'of_another') and relkind = 'r' order by 2"
)


def test_own_tables_are_analyzed_and_others_left_alone(target_url):
    with closing(psycopg2.connect(target_url)) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        connection.commit()
        done = vacuum_own_tables(load_target_settings({}, target_url))
        cursor.execute(COUNTS)
        counts = cursor.fetchall()

    assert [(table.table_name, table.is_locked) for table in done] == [("raw.orders", False)]
    assert sorted(counts) == [("of_another", -1.0), ("orders", -1.0), ("orders", 1000.0)]


def test_locked_table_is_skipped_and_reported(target_url):
    with closing(psycopg2.connect(target_url)) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        connection.commit()
        cursor.execute("lock table raw.orders in access exclusive mode")
        done = vacuum_own_tables(load_target_settings({}, target_url))

    assert [(table.table_name, table.is_locked) for table in done] == [("raw.orders", True)]
