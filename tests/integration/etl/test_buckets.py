"""That comparing by buckets finds what comparing all rows finds, whatever keys, values and differences there are."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from psycopg2.extras import execute_values

from etl.commands.verify import verify
from etl.compare import buckets
from etl.compare.buckets import BUCKET_BITS, IMAGES, MIN_BLOCK_BITS
from etl.model import RunOptions
from tests.examples import ON_SERVERS
from tests.results import pick

BLOCK_KEYS = 2**MIN_BLOCK_BITS  # successive integer keys of one bucket
INT8 = st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 1, 2**31 - 1, 2**32, -(2**32)])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
NAMES = st.sampled_from(["a", "A", "a ", "ä", "", "zz", '"', "\\", "(,)"]) | TEXT
KEYS = {
    "smallint": ("smallint", st.integers(-(2**15), 2**15 - 1) | st.integers(-3, 3)),
    "bigint": ("bigint", INT8 | st.integers(-200, 200)),
    "text": ("text", NAMES),
    "uuid": ("uuid", st.uuids().map(str)),
    "numeric": ("numeric", st.integers(-99, 99).map(lambda n: f"{n / 10:.2f}")),
    "timestamp": (
        "timestamp",
        st.sampled_from(["-infinity", "infinity", "0044-03-15 BC", "2024-02-29 00:00:00.000001"]),
    ),
    "date and bigint": ("date, bigint", st.tuples(st.dates().map(str), INT8)),
    "text and text": ("text, text", st.tuples(NAMES, NAMES)),
    "array": ("integer[]", st.sampled_from(["{}", "{0}", "{1}", "{1,0}", "{{1,0}}", "{NULL}"])),
}
COLUMNS = {
    "number": ("bigint", st.none() | INT8),
    "amount": ("numeric", st.none() | st.sampled_from(["1.0", "1.00", "0", "0.0", "NaN", "1e100"])),
    "rate": ("double precision", st.sampled_from(["0", "-0", "NaN", "0.1"])),
    "at": ("timestamptz", st.none() | st.sampled_from(["infinity", "2024-02-29Z", "2024-02-29 00:00:00.000001Z"])),
    "note": ("text", st.none() | NAMES),
    "document": ("jsonb", st.none() | st.sampled_from(["{}", '{"a": 1.0}', '{"a": 1.00}', "[]", "null"])),
    "moods": ("text[]", st.lists(st.none() | NAMES, max_size=2)),
}
VALUES = st.tuples(*(values for _, values in COLUMNS.values()))


@dataclass(frozen=True)
class Sides:
    """A replicated table with this key, and both of its sides."""

    replication: object
    key: tuple

    def fill(self, in_source, in_raw):
        """Give both sides these rows, by key."""
        for connection, table, rows in (
            (self.replication.source, "items", in_source),
            (self.replication.target, "raw.items", in_raw),
        ):
            names = [*self.key, *COLUMNS]
            with connection.cursor() as cursor:
                cursor.execute(f"truncate {table}")
                insert = sql.SQL("insert into {} ({}) values %s").format(
                    sql.SQL(table), sql.SQL(", ").join(map(sql.Identifier, names))
                )
                values = [(*(key if isinstance(key, tuple) else (key,)), *row) for key, row in rows.items()]
                execute_values(cursor, insert.as_string(connection), values)

    def read(self, on_side, table):
        """Return the rows of a side by key, both as text."""
        key = ", ".join(self.key)
        return dict(on_side(f"select row({key})::text, row({key}, {', '.join(COLUMNS)})::text from {table}"))


@pytest.fixture(params=KEYS)
def sides(request, replication):
    types = KEYS[request.param][0].split(", ")
    key = tuple(f"key{place}" for place in range(len(types)))
    columns = [*zip(key, types, strict=True), *((name, kind) for name, (kind, _) in COLUMNS.items())]
    replication.on_source(
        f"create table items ({', '.join(f'{name} {kind}' for name, kind in columns)}, primary key ({', '.join(key)}))"
    )
    replication.run_one("items")
    return request.param, Sides(replication, key)


@pytest.mark.has_long_form
@given(data=st.data(), bits=st.sampled_from([0, 2, BUCKET_BITS]))
@settings.get_profile(ON_SERVERS)
def test_buckets_find_the_same_as_comparing_all_rows(sides, monkeypatch, data, bits):
    name, both = sides
    keys = KEYS[name][1]
    in_source = data.draw(st.dictionaries(keys, VALUES, max_size=12))
    in_raw = dict(in_source)
    for key in data.draw(st.lists(st.sampled_from(sorted(in_source, key=repr)), max_size=3)) if in_source else []:
        in_raw.pop(key, None)
    in_raw |= data.draw(st.dictionaries(keys, VALUES, max_size=3))
    if len(in_raw) > 1 and data.draw(st.booleans()):  # two rows exchange their values
        one, other = data.draw(st.permutations(sorted(in_raw, key=repr)))[:2]
        in_raw[one], in_raw[other] = in_raw[other], in_raw[one]
    both.fill(in_source, in_raw)
    source = both.read(both.replication.on_source, "items")
    raw = both.read(both.replication.on_target, "raw.items")

    with monkeypatch.context() as patching:
        patching.setattr(buckets, "BUCKET_BITS", bits)
        (found,) = verify(both.replication.settings, observe=both.replication.events.append)

    assert pick(found, "error", "source_rows", "raw_rows") == (None, len(source), len(raw))
    assert (found.missing, found.extra, found.changed, found.pending) == (
        len(source.keys() - raw.keys()),
        len(raw.keys() - source.keys()),
        sum(raw[key] != source[key] for key in source.keys() & raw.keys()),
        0,
    )


@pytest.mark.parametrize("kind", [*IMAGES, "numeric(9,3)", "character varying(9)", "timestamp(3) with time zone"])
def test_equal_rows_have_equal_checksums_across_versions(replication, count_copied_lines, kind):
    value = {
        "bigint": "n * 1234567890123",
        "boolean": "n % 2 = 0",
        "bytea": "pg_catalog.sha256(n::text::bytea)",
        "date": "date '2024-02-29' + n * 97",
        "integer": "n * -7",
        "jsonb": """jsonb_build_object('n', n / 7.0, 'text', 'é"' || n)""",
        "numeric": "n / 7.0",
        "smallint": "n - 100",
        "text": "'é' || n",
        "uuid": "md5(n::text)::uuid",
    }
    expression = next(
        (text for name, text in value.items() if kind.startswith(name)),
        "timestamp '2024-02-29' + n * interval '12345.678 s'" if kind.startswith("timestamp") else "'v' || n",
    )
    replication.on_source(f"create table items (n int, v {kind}, w timestamptz, primary key (n))")
    replication.on_source(
        f"insert into items select n, {expression}, now() + n * interval '1 s' from generate_series(1, 200) as n"
    )
    replication.on_source("insert into items values (0, null, null)")
    replication.run_one("items")
    lines = count_copied_lines()

    (found,) = verify(replication.settings, observe=replication.events.append)

    assert pick(found, "is_equal", "source_rows") == (True, 201)
    assert lines == []


def test_rows_swapping_values_within_a_bucket_are_found(replication):
    """Sums of hashes that are sums themselves would be the same."""
    rows = 100 * BLOCK_KEYS
    replication.on_source("create table items (n bigint primary key, other bigint, updated_at timestamptz)")
    replication.on_source(
        "insert into items select n, -n, timestamptz '2024-01-01Z' + n * interval '1 s' from generate_series(0, %s) n",
        rows,
    )
    replication.run_one("items")
    replication.on_target(
        "update raw.items as r set other = o.other from raw.items as o "
        "where r.n %% %s < 2 and r.n / 2 = o.n / 2 and r.n <> o.n",
        BLOCK_KEYS,
    )

    (found,) = verify(replication.settings, observe=replication.events.append)

    assert found.changed + found.pending == 200


def test_numbers_with_equal_hashes_are_distinguished(replication):
    replication.on_source("create table items (n bigint primary key, other bigint)")
    replication.on_source("insert into items values (1, 1), (2, -9223372036854775808)")
    replication.run_one("items")
    replication.on_target("update raw.items set other = case n when 1 then 4294967296 else 2147483647 end")

    (found,) = verify(replication.settings, observe=replication.events.append)

    assert found.changed == 2


def test_sparse_and_distant_keys_spread_over_buckets(replication, count_copied_lines):
    replication.on_source("create table items (n bigint primary key, note text)")
    replication.on_source("insert into items select n::bigint << 22, 'note' from generate_series(1, 5000) as n")
    replication.on_source("insert into items values (9223372036854775807, 'far'), (-9223372036854775808, 'far')")
    replication.run_one("items")
    replication.on_source("update items set note = 'x' where n = 77::bigint << 22; analyze items")
    lines = count_copied_lines()

    (found,) = verify(replication.settings, observe=replication.events.append)

    assert found.changed == 1
    assert 0 < sum(lines) < 10


def test_column_retyped_by_the_owner_is_compared_as_text(replication, count_copied_lines):
    replication.on_source("create table items (n bigint primary key, revision bigint not null)")
    replication.on_source("insert into items select n, n from generate_series(1, 20) as n")
    replication.configure({"tables": {"items": {"watermark": "revision", "lookback_rows": 1}}})
    replication.run_one("items")
    replication.on_target("alter table raw.items alter column revision type numeric")
    replication.run_one("items")
    lines = count_copied_lines()

    (found,) = verify(replication.settings, observe=replication.events.append)
    (result,) = replication.run("items", options=RunOptions(reconcile=True)).tables

    assert found.is_equal
    assert pick(result, "status", "rows_updated") == ("succeeded", 0)
    assert sum(lines) < 20  # the run reads what is near its watermark; comparing moves nothing


def test_only_the_differing_column_is_named_beside_a_retyped_one(replication):
    replication.on_source("create table items (n bigint primary key, revision bigint not null, note text)")
    replication.on_source("insert into items values (1, 1, 'a'), (2, 2, 'b')")
    replication.run_one("items")
    replication.on_target("alter table raw.items alter column revision type numeric")
    replication.on_target("update raw.items set note = 'by hand' where n = 2")

    (found,) = verify(replication.settings, observe=replication.events.append)

    assert [(each.kind, each.key, each.columns) for each in found.examples] == [("changed", {"n": "2"}, ("note",))]
