"""The example source: a repeatable seed, a role that only reads, and activity that keeps the books right."""

import datetime as dt

import psycopg2
import pytest

from deploy.local.servers import Server
from source_db import schema, seed, simulate
from tests.integration.dbt.built_shop import open_database

UNTIL = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

BROKEN_BOOKS = {
    "a subtotal that is not the sum of its lines": """
        select order_id from orders left join order_items as i using (order_id)
        group by order_id having subtotal <> coalesce(sum(quantity * unit_price), 0)
    """,
    "a discount that is not the sum of its lines": """
        select order_id from orders as o left join order_items as i using (order_id)
        group by order_id having o.discount <> coalesce(sum(i.discount), 0)
    """,
    "a paid order whose captured payments are not its total": """
        select orders.order_id from orders
        left join payments as p on p.order_id = orders.order_id and p.status = 'captured'
        where orders.status in ('paid', 'shipped', 'delivered', 'returned')
        group by orders.order_id having total <> coalesce(sum(amount), 0)
    """,
    "a returned order that was not refunded": """
        select o.order_id from orders as o join payments as p using (order_id)
        where o.status = 'returned' and p.status in ('captured', 'refunded')
        group by o.order_id having sum(amount) <> 0
    """,
    "an order before its customer": """
        select order_id from orders join customers using (customer_id) where ordered_at < customers.created_at
    """,
}


def query(url, statement, *parameters):
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def checksums(url):
    return {
        table: query(url, f"select count(*), sum(hashtextextended(t::text, 0)) from {table} as t")[0]
        for table in schema.TABLES
    }


def broken_books(url):
    return {name: rows for name, text in BROKEN_BOOKS.items() if (rows := query(url, text))}


@pytest.fixture
def shop(source_url):
    schema.apply(source_url)
    seed.load(source_url, scale=0.1, until=UNTIL)
    return source_url


def test_the_same_seed_gives_the_same_rows(source_url, target_url):
    for url in (source_url, target_url):
        schema.apply(url)
        seed.load(url, scale=0.05, seed=7, until=UNTIL)

    assert checksums(source_url) == checksums(target_url)


def test_a_seed_of_one_tenth_has_a_tenth_of_the_rows(shop):
    counts = {table: count for table, (count, _) in checksums(shop).items()}

    assert counts["customers"] == 200
    assert counts["products"] == 50
    assert counts["orders"] == 2000
    assert 5000 < counts["order_items"] < 7000
    assert 5000 < counts["events"] < 7000


def test_seeded_data_is_consistent(shop):
    assert broken_books(shop) == {}


def test_seeded_history_is_worth_analysing(shop):
    funnel = [row[0] for row in query(shop, "select count(*) from events group by event_type order by event_type")]
    (top_share,) = query(
        shop,
        "select sum(n) filter (where place <= 20) / sum(n) from (select count(*) as n, "
        "row_number() over (order by count(*) desc) as place from orders group by customer_id) as t",
    )[0]
    (unsold,) = query(
        shop,
        "select count(*) from products as p where not exists (select from order_items where product_id = p.product_id)",
    )[0]
    (weekend, weekday) = query(
        shop,
        "select count(*) filter (where extract(isodow from ordered_at) >= 6) / 2.0, "
        "count(*) filter (where extract(isodow from ordered_at) < 6) / 5.0 from orders",
    )[0]

    assert funnel == sorted(funnel, reverse=True)
    assert len(funnel) == 5
    assert top_share > 0.2
    assert unsold >= 3
    assert weekend > weekday
    assert query(shop, "select count(distinct status) from orders")[0][0] >= 5


def test_the_next_row_gets_a_new_number(shop):
    query(
        shop, "insert into customers (email, first_name, last_name, country, city) values ('a@b', 'A', 'B', 'US', 'C')"
    )

    assert query(shop, "select customer_id from customers where email = 'a@b'") == [(201,)]


def test_seeding_filled_tables_is_rejected_without_changes(shop):
    before = checksums(shop)

    with pytest.raises(schema.SourceDatabaseError, match="hold rows already"):
        seed.load(shop, scale=0.1)

    assert checksums(shop) == before


def test_a_seed_that_fails_leaves_nothing(source_url):
    schema.apply(source_url)
    query(source_url, "alter table events add constraint none check (event_type <> 'purchase')")

    with pytest.raises(psycopg2.errors.CheckViolation):
        seed.load(source_url, scale=0.05, until=UNTIL)

    assert seed.is_empty(source_url)


@pytest.fixture(scope="module")
def replicated(source_server):
    """A seeded shop, and a connection of its replicator in a session set to read and write."""
    with open_database(source_server) as url:
        schema.apply(url)
        seed.load(url, scale=0.02, until=UNTIL)
        schema.create_replicator(url, "it's")
        schema.create_replicator(url, "secret")  # sets another password
        reader = psycopg2.connect(**{**psycopg2.extensions.parse_dsn(url), "user": "replicator", "password": "secret"})
        reader.autocommit = True
        query_on(reader, "set default_transaction_read_only = off")
        yield reader
        reader.close()
        query(url, "drop owned by replicator; revoke pg_read_all_stats from replicator; drop role replicator")


def query_on(connection, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_replicator_reads_every_table_and_all_session_activity(replicated):
    assert query_on(replicated, "select count(*) from orders") == [(400,)]
    for table in schema.TABLES:
        assert query_on(replicated, f"select count(*) > 0 from {table}") == [(True,)]
    # Of another session; without the privilege its state is hidden.
    assert query_on(
        replicated,
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and state is null",
    ) == [(0,)]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into customers (email, first_name, last_name, country, city) values ('a@b', 'A', 'B', 'US', 'C')",
        "update orders set status = 'paid'",
        "delete from orders",
        "truncate events",
        "merge into campaigns as c using orders as o on false when not matched then do nothing "
        "when matched then delete",
        "select order_id from orders for update",
        "select; lock table orders in share mode",
        "copy customers from stdin",
        "alter table orders add column mine int",
        "drop table events",
        "create index on orders (total)",
        "create trigger mine before insert on orders for each row execute function touch_updated_at()",
        "create table public.mine (a int)",
        "create temporary table mine (a int)",
        "create schema mine",
        "create function public.mine() returns int language sql as 'select 1'",
        "select nextval('orders_order_id_seq')",
        "select setval('orders_order_id_seq', 1)",
        "select lo_create(0)",
        "select lo_from_bytea(0, 'mine')",
        "select pg_read_file('postgresql.conf')",
        "copy orders to program 'cat'",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
        "alter role replicator superuser",
        "set role postgres",
        "alter system set fsync = off",
    ],
)
def test_replicator_cannot_write_or_change_anything(replicated, statement):
    """Even in a session set to read and write, because the role can change that default itself."""
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query_on(replicated, statement)


def test_replicator_password_is_in_no_statement_to_the_server(servers_home, free_port):
    server = Server(
        name="logged", folder=servers_home / "logged", port=free_port(), major=16, settings={"log_statement": "all"}
    )
    try:
        server.start()
        schema.apply(server.url())
        schema.create_replicator(server.url(), "s3cret'\\")
        logged = server.log.read_text()
        reader = psycopg2.connect(server.url(user="replicator", password="s3cret'\\"))
        reader.close()
    finally:
        server.remove()

    assert "alter role replicator" in logged
    assert "s3cret" not in logged


def test_simulation_does_all_kinds_of_work_and_stays_consistent(shop):
    before = checksums(shop)

    seen: set[str] = set()
    wanted = {*simulate.ACTIVITIES, "rolled_back", "stayed_open"}
    for seed_number in range(10):  # a busy machine does less in a second
        seen |= set(simulate.run(shop, seconds=2, rate=250, writers=4, seed=seed_number))
        if seen >= wanted:
            break

    assert seen >= wanted
    assert broken_books(shop) == {}
    now = checksums(shop)
    assert [table for table in schema.TABLES if table != "campaigns" and now[table] == before[table]] == []
