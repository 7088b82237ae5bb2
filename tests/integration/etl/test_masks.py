"""What must not leave the source: columns that are left out, and values that the source sends masked."""

import hashlib
import hmac
from dataclasses import replace

import pytest

import etl
from etl.config import load_settings
from etl.errors import ConfigurationError
from etl.model import MaskKey, RunOptions
from tests.integration.etl.faults import Proxy, port_of, through

KEY = "a secret of more than sixteen characters"
PEOPLE = """
    create type mood as enum ('sad', 'glad');
    create table people (
        person_id int primary key, ssn text, email varchar(40), born date, phone bigint, mood mood, notes jsonb,
        updated_at timestamptz not null default clock_timestamp()
    );
    create index on people (updated_at);
    create table orders (order_id int primary key, customer_email text);
    insert into people select n, '123-45-' || n, 'person' || n || '@example.com', '2000-01-01'::date + n,
        491700000000 + n, case when n % 2 = 0 then 'glad' else 'sad' end::mood, '{"secret": "diary"}'
        from generate_series(1, 300) as n;
    insert into people (person_id) values (301);
    insert into orders select n, 'person' || n || '@example.com' from generate_series(1, 300) as n
"""
MASKS = {
    "ssn": "exclude",
    "email": "hash",
    "born": {"constant": "1970-01-01"},
    "phone": {"first": 4},
    "mood": "hash",
    "notes": None,
}
SHOWN = ("diary", "123-45-", "@example.com", "4917000", "2000-0")


def configure(replication, masks, watermark="updated_at", key=KEY, **more):
    tables = {"people": {"columns": masks, **more}, "orders": {"columns": {"customer_email": "hash"}}}
    replication.configure({"defaults": {"watermark": watermark, "batch_rows": 40}, "tables": tables})
    replication.settings = replace(
        replication.settings, tables=replace(replication.settings.tables, mask_key=MaskKey(key))
    )


@pytest.fixture(params=["updated_at", "xmin"])
def people(replication, request):
    replication.on_source(PEOPLE)
    configure(replication, MASKS, request.param)
    return replication


def hashed(text, key=KEY):
    """HMAC by the standard library: the plain definition."""
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def expected(number, ending=""):
    if number == 301:
        return (number, None, None, None, None, None)
    mood = "glad" if number % 2 == 0 else "sad"
    born = "1970-01-01"
    return (number, hashed(f"person{number}@example.com{ending}"), born, "4917", hashed(mood), None)


def in_raw(replication):
    return replication.on_target(
        "select person_id, email, born::text, phone, mood, notes from raw.people where _etl_deleted_at is null "
        "order by person_id"
    )


def assert_equal(replication):
    verdicts = etl.verify(replication.settings)

    assert [(verdict.table_name, verdict.is_equal, verdict.pending) for verdict in verdicts] == [
        ("orders", True, 0),
        ("people", True, 0),
    ], verdicts


def test_values_are_masked_in_every_way_of_reading(people):
    people.run()
    assert in_raw(people) == [expected(number) for number in range(1, 302)]
    people.on_source(
        "update people set email = email || '!', updated_at = clock_timestamp() where person_id <= 5; "
        "delete from people where person_id between 100 and 110; "
        "set session_replication_role = replica; update people set email = email || '?' where person_id = 300"
    )
    people.run(options=RunOptions(reconcile=True))

    rows = {row[0]: row for row in in_raw(people)}
    assert rows == {
        number: expected(number, "!" if number <= 5 else "?" if number == 300 else "")
        for number in range(1, 302)
        if not 100 <= number <= 110
    }
    assert_equal(people)


def test_hashes_of_equal_values_join_across_tables(people):
    people.run()

    joined = people.on_target(
        "select count(*) from raw.people as p join raw.orders as o on o.customer_email = p.email "
        "where p.person_id = o.order_id"
    )
    assert joined == [(300,)]


def test_no_masked_value_passes_the_network(people):
    """Not in what a run, a comparison or a repair of a changed row reads."""
    seen = bytearray()
    with_proxy = Recorder(port_of(people.source_url), seen)
    try:
        settings = people.settings_with(source_url=through(with_proxy, people.source_url))
        etl.run(settings)
        people.on_target("update raw.people set email = 'wrong' where person_id < 4")
        etl.verify(settings, is_repair=True)
    finally:
        with_proxy.close()

    assert len(seen) > 20_000
    assert [text for text in SHOWN if text.encode() in seen] == []
    assert in_raw(people) == [expected(number) for number in range(1, 302)]


class Recorder(Proxy):
    """Keeps what the server sends."""

    def __init__(self, port, seen):
        self._seen = seen
        super().__init__(port, 0, None, from_clients=False)

    def _count(self, chunk):
        self._seen += chunk


def test_mask_that_is_set_later_rewrites_all_rows(people):
    watermark = people.settings.tables.defaults.watermark or "xmin"
    configure(people, {"phone": {"first": 4}}, watermark)
    people.run()
    assert people.on_target("select email from raw.people where person_id = 7") == [("person7@example.com",)]
    configure(people, {"phone": {"first": 2}, "email": {"constant": "hidden"}}, watermark)
    people.run()

    assert people.on_target("select distinct email, phone from raw.people where email is not null") == [
        ("hidden", "49")
    ]
    assert people.on_target("select count(*) from raw.people where email is null") == [(1,)]


def test_another_key_hashes_all_rows_again(people):
    people.run()
    configure(people, MASKS, people.settings.tables.defaults.watermark or "xmin", "another secret of some length")
    people.run()

    assert people.on_target("select email from raw.people where person_id = 9") == [
        (hashed("person9@example.com", "another secret of some length"),)
    ]
    assert_equal(people)


def test_column_that_is_excluded_later_is_named_with_its_values(people):
    configure(people, {}, people.settings.tables.defaults.watermark or "xmin")
    people.run()
    configure(people, {"ssn": "exclude"}, people.settings.tables.defaults.watermark or "xmin")
    people.run()

    messages = [event.message for event in people.events if "ssn" in event.message]
    assert messages == [
        'public.people: column "ssn" excluded in tables.yml; raw keeps its values: drop the column there, or empty it'
    ]


def test_rejected_rows_are_stored_masked(people):
    people.run()
    people.on_target("alter table raw.people add constraint no_new check (person_id < 400)")
    people.on_source("insert into people (person_id, ssn, email) values (401, '123-45-6', 'new@example.com')")
    people.run()

    ((text,),) = people.on_target("select row_text from etl.rejected_rows")
    assert hashed("new@example.com") in text
    assert [shown for shown in SHOWN if shown in text] == []


@pytest.mark.parametrize(
    ("masks", "fault"),
    [
        ({"person_id": "hash"}, 'column "person_id" of public.people is its key or watermark'),
        ({"updated_at": "exclude"}, 'column "updated_at" of public.people is its key or watermark'),
        ({"mail": "hash"}, "public.people has no column 'mail', which `columns` in tables.yml masks"),
    ],
)
def test_mask_that_cannot_be_is_refused(replication, masks, fault):
    replication.on_source(PEOPLE)
    configure(replication, masks)

    errors = {table.table_name: table.error for table in replication.run().tables}

    assert errors["orders"] is None
    assert fault in errors["people"]


def test_hash_needs_a_key_and_no_text_shows_it(replication, tmp_path):
    path = tmp_path / "tables.yml"
    path.write_text("tables: {people: {columns: {email: hash}}}")
    environment = {**replication.environment, "ETL_TABLES": str(path)}
    with pytest.raises(ConfigurationError, match=r"ETL_MASK_KEY has 5 characters: hashing people\.email needs"):
        load_settings({**environment, "ETL_MASK_KEY": "short"})
    settings = load_settings({**environment, "ETL_MASK_KEY": KEY})

    assert settings.tables.mask_key == MaskKey(KEY)
    assert KEY not in repr(settings)
