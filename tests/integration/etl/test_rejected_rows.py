"""A row that the target refuses is set aside with the reason, and the rest of its batch goes on."""

import contextlib
import dataclasses
import itertools
import json
import math

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2 import sql

import etl
from etl.errors import UnavailableError
from etl.source.reader import Reader
from tests.examples import ON_SERVERS
from tests.results import pick, statuses

REJECTS = "select key, sqlstate, message, row_text, run_id, first_run_id from etl.rejected_rows where table_name = %s"
_numbers = itertools.count(1)


def configure(replication, **defaults):
    replication.configure({"defaults": defaults})


def make_items(replication, rows):
    """Make a table of plain types, as an owner of `raw` may constrain them, and replicate it once."""
    replication.on_source(
        "create table items (item_id int primary key, name text, amount int, "
        "updated_at timestamptz not null default now()); create index on items (updated_at)"
    )
    replication.on_source("insert into items select n, 'name ' || n, n from generate_series(1, %s) as n", rows)
    replication.run_one("items")


def change_items(replication, assignments, *item_ids):
    replication.on_source(
        f"update items set {assignments}, updated_at = clock_timestamp() where item_id = any (%s)", list(item_ids)
    )


def refuse_amounts(replication, condition="amount < 1000", table_name="items"):
    replication.on_target(f"alter table raw.{table_name} add constraint amounts check ({condition}) not valid")


def rejected_keys(replication, table_name="items"):
    """Return the keys in etl.rejected_rows: numbers where they are numbers."""
    keys = [json.loads(row[0]) for row in replication.on_target(REJECTS, table_name)]
    return sorted(tuple(int(part) if part.lstrip("-").isdecimal() else part for part in key) for key in keys)


def rejected_ids(replication, table_name="items"):
    return [key[0] for key in rejected_keys(replication, table_name)]


def raw_amounts(replication, table_name="items", key="item_id"):
    return dict(replication.on_target(f"select {key}, amount from raw.{table_name} where _etl_deleted_at is null"))


@pytest.fixture
def items(replication):
    """A replicated table of 30 rows."""
    make_items(replication, 30)
    return replication


@pytest.fixture
def windows_read(monkeypatch):
    """The windows of every COPY from the source, in order."""
    found = []
    copy_out = Reader.copy_out

    def spy(self, table, rows, into):
        found.append(rows)
        copy_out(self, table, rows, into)

    monkeypatch.setattr(Reader, "copy_out", spy)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What a target may refuse

RAISE_ON_RAW = """
    create function public.refuse() returns trigger language plpgsql as $$
    begin
        if new.amount >= 1000 then
            raise exception 'amount % is not credible', new.amount;
        end if;
        return new;
    end $$;
"""
CREATE_AMOUNTS = """
    create table public.amounts as select amount from raw.items union all select 500;
    alter table public.amounts add unique (amount);
"""
REFUSALS = {
    "a check constraint": (
        "alter table raw.items add constraint credible check (amount < 1000)",
        "amount = 1000 + item_id",
        ("23514", 'violates check constraint "credible"'),
    ),
    "not null": (
        "alter table raw.items alter column name set not null",
        "name = null",
        ("23502", 'null value in column "name"'),
    ),
    "a unique constraint": (
        "alter table raw.items add constraint one_name unique (name)",
        "name = 'name 1'",
        ("23505", 'duplicate key value violates unique constraint "one_name"'),
    ),
    "an exclusion constraint": (
        "alter table raw.items add constraint one_name exclude using btree (name with =)",
        "name = 'name 1'",
        ("23P01", 'conflicting key value violates exclusion constraint "one_name"'),
    ),
    "a foreign key": (
        CREATE_AMOUNTS
        + "alter table raw.items add constraint known foreign key (amount) references public.amounts (amount)",
        "amount = 1000 + item_id",
        ("23503", 'violates foreign key constraint "known"'),
    ),
    "a foreign key checked at commit": (
        CREATE_AMOUNTS
        + "alter table raw.items add constraint known foreign key (amount) references public.amounts (amount)"
        " deferrable initially deferred",
        "amount = 1000 + item_id",
        ("23503", 'violates foreign key constraint "known"'),
    ),
    "a unique constraint checked at commit": (
        "alter table raw.items add constraint one_name unique (name) deferrable initially deferred",
        "name = 'name 1'",
        ("23505", 'duplicate key value violates unique constraint "one_name"'),
    ),
    "a trigger": (
        RAISE_ON_RAW + "create trigger refuse before insert or update on raw.items"
        " for each row execute function public.refuse()",
        "amount = 1000 + item_id",
        ("P0001", "is not credible"),
    ),
    "a trigger at commit": (
        RAISE_ON_RAW + "create constraint trigger refuse after insert or update on raw.items"
        " deferrable initially deferred for each row execute function public.refuse()",
        "amount = 1000 + item_id",
        ("P0001", "is not credible"),
    ),
    "a shorter text": (
        "alter table raw.items alter column name type varchar(9)",
        "name = 'a name too long'",
        ("22001", "value too long for type character varying(9)"),
    ),
    "a smaller integer": (
        "alter table raw.items alter column amount type smallint",
        "amount = 40000",
        ("22003", 'value "40000" is out of range for type smallint'),
    ),
    "a type of another kind": (
        "alter table raw.items alter column name type int using item_id",
        "name = 'none'",
        ("22P02", 'invalid input syntax for type integer: "none"'),
    ),
    "a domain": (
        "create domain public.credible as int check (value < 1000);"
        "alter table raw.items alter column amount type public.credible",
        "amount = 1000 + item_id",
        ("23514", "value for domain public.credible violates check constraint"),
    ),
    "a column computed from it": (
        "alter table raw.items add column share int generated always as (1000 / amount) stored",
        "amount = 0",
        ("22012", "division by zero"),
    ),
    "an index of it": (
        "create index items_name on raw.items (name)",
        "name = (select string_agg(md5(n::text), '') from generate_series(1, 500) as n)",
        ("54000", "index row requires"),
    ),
}
BAD = (1, 2, 16, 30)


@pytest.mark.parametrize(("made_by_owner", "bad_value", "refusal"), REFUSALS.values(), ids=REFUSALS)
def test_invalid_row_is_rejected_with_the_reason(items, made_by_owner, bad_value, refusal):
    sqlstate, message = refusal
    if "item_id" in made_by_owner:  # the other names have to be numbers as well
        items.on_source("update items set name = item_id, updated_at = clock_timestamp()")
        items.run_one("items")
    items.on_target(made_by_owner)
    before = dict(items.on_target("select item_id, name || ' ' || amount from raw.items"))
    if message.endswith('"one_name"'):  # item 1 keeps the name that the others take
        change_items(items, "amount = amount", 1)
    bad = BAD[1:] if message.endswith('"one_name"') else BAD
    change_items(items, bad_value, *bad)
    change_items(items, "amount = 500", 5, 15, 25)

    result = items.run_one("items")

    found = items.on_target(REJECTS + " order by (key::json ->> 0)::int", "items")
    source = dict(items.on_source("select item_id, row(items)::text from items"))
    after = dict(items.on_target("select item_id, name || ' ' || amount from raw.items"))
    assert result.rows_rejected == len(bad)
    assert [json.loads(row[0]) for row in found] == [[str(item_id)] for item_id in bad]
    assert {row[1] for row in found} == {sqlstate}
    assert [row[2] for row in found if message not in row[2] or f"(SQLSTATE {sqlstate})" not in row[2]] == []
    assert {row[4:] for row in found} == {(result_run(items), result_run(items))}
    assert [row[3].split("\t")[0] for row in found] == [str(item_id) for item_id in bad]
    assert {item_id: before[item_id] for item_id in bad} == {item_id: after[item_id] for item_id in bad}
    assert [after[item_id].rpartition(" ")[2] for item_id in (5, 15, 25)] == ["500", "500", "500"]
    assert len(source) == len(after) == 30


def result_run(replication):
    return replication.on_target("select max(run_id) from etl.runs")[0][0]


def test_value_rounded_by_the_owners_type_is_reported(replication):
    replication.on_source("create table rates (rate_id int primary key, rate numeric(12, 2))")
    replication.on_source("insert into rates values (1, 1), (2, 2)")
    replication.run_one("rates")
    replication.on_target("alter table raw.rates alter column rate type numeric(4, 1)")
    replication.on_source("update rates set rate = case rate_id when 1 then 1.26 else 1000 end")

    replication.run_one("rates")

    assert replication.on_target("select rate_id, rate::text from raw.rates order by 1") == [(1, "1.3"), (2, "2.0")]
    assert rejected_ids(replication, "rates") == [2]
    told = [event.message for event in replication.events if event.kind == "notice"]
    expected = "as numeric(4,1), which rounds finer values and rejects those that do not fit"
    assert any(expected in text for text in told), told


def test_a_rejected_row_is_kept_as_one_line_of_escaped_text(items):
    refuse_amounts(items)
    text = "tab\there, line\nthere, back\\slash, é € 😀"
    items.on_source("update items set name = %s, amount = 1000, updated_at = '2024-01-01Z' where item_id = 3", text)
    items.on_source("update items set updated_at = clock_timestamp() where item_id = 3")

    items.run_one("items")

    ((_, _, _, row_text, _, _),) = items.on_target(REJECTS, "items")
    item_id, name, amount, _ = row_text.split("\t")
    assert (item_id, amount) == ("3", "1000")
    assert name == "tab\\there, line\\nthere, back\\\\slash, \\xe9 \\u20ac \\U0001f600"


# ---------------------------------------------------------------------------------------------------------------------
# Where the bad rows are

SHAPES = {
    "a watermark": ("item_id int primary key, amount int, updated_at timestamptz not null default now()", "{n}"),
    "a composite key": (
        "kind text, item_id int, amount int, updated_at timestamptz not null default now(),"
        " primary key (kind, item_id)",
        "'kind ' || {n} %% 3, {n}",
    ),
    "no watermark": ("item_id int primary key, amount int", "{n}"),
    "watermarks that are NULL": ("item_id int primary key, amount int, updated_at timestamptz", "{n}"),
    "an integer watermark": ("item_id int primary key generated always as identity, amount int", "{n}"),
}


def make_shape(replication, shape, batch_rows):
    """Make and replicate a table of 30 good rows, some of them without a value in a nullable watermark."""
    columns, values = SHAPES[shape]
    tables = {"items": {"watermark": "item_id"}} if shape == "an integer watermark" else {}
    replication.configure({"defaults": {"batch_rows": batch_rows}, "tables": tables})
    replication.on_source(f"create table items ({columns})")
    replication.run_one("items")
    refuse_amounts(replication)
    return values


def insert_shape(replication, shape, values, rows, bad):
    """Insert rows, some of them bad, in an order that differs from that of the keys."""
    overriding = "overriding system value" if shape == "an integer watermark" else ""
    names = "kind, item_id, amount" if shape == "a composite key" else "item_id, amount"
    replication.on_source(
        f"insert into items ({names}) {overriding} select {values.format(n='n')}, "
        "case when n = any (%s) then 1000 else 1 end from generate_series(1, %s) as n order by n %% 4, n",
        list(bad),
        rows,
    )
    if shape == "watermarks that are NULL":
        replication.on_source("update items set updated_at = now() where item_id %% 3 = 0 and %s", True)


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "bad", [{1, 2, 3, 15, 16, 29, 30}, set(range(1, 31))], ids=["at the start, middle and end", "all rows"]
)
def test_bad_rows_anywhere_in_a_batch_leave_the_good_ones(replication, shape, batch_rows, bad):
    values = make_shape(replication, shape, batch_rows)
    insert_shape(replication, shape, values, 30, bad)

    result = replication.run_one("items")

    assert {key[-1] for key in rejected_keys(replication)} == bad
    assert set(raw_amounts(replication)) == set(range(1, 31)) - bad
    assert pick(result, "rows_read", "rows_inserted", "rows_rejected") == (30, 30 - len(bad), len(bad))


@pytest.mark.parametrize(("bad", "batch_rows"), [(1, 1024), (3, 1024), (1, 128), (5, 128)])
def test_bad_rows_are_found_by_halving_the_batch(replication, windows_read, bad, batch_rows):
    """A refused window costs its two halves, so a bad row costs at most two copies for each halving."""
    make_items(replication, 1024)
    configure(replication, batch_rows=batch_rows)
    refuse_amounts(replication, "amount < 5000")
    replication.on_source("update items set updated_at = clock_timestamp()")
    change_items(replication, "amount = 5000", *range(7, 1024, 1024 // bad)[:bad])
    windows_read.clear()

    result = replication.run_one("items")

    batches = 1024 // batch_rows + 1
    assert result.rows_rejected == bad
    assert len(windows_read) <= batches + bad * 2 * math.ceil(math.log2(batch_rows))
    assert len(windows_read) < 1024 / 10


def test_rejected_rows_are_retried_by_key_without_a_search(items, windows_read):
    """A later run reads the rejected rows by their keys."""
    refuse_amounts(items)
    change_items(items, "amount = 1000", 7, 21)
    items.run_one("items")
    windows_read.clear()

    items.run_one("items")

    assert windows_read[0].keys == (("21",), ("7",))
    assert sum(window.keys is None for window in windows_read) == 1
    assert rejected_ids(items) == [7, 21]


@pytest.mark.has_long_form
@given(data=st.data())
@settings.get_profile(ON_SERVERS)
def test_raw_keeps_the_last_good_version_of_every_row(replication, data):
    """Rows turn bad, good and again bad, over tables, batches and runs of any size."""
    table_name = f"history_{next(_numbers)}"
    rows = data.draw(st.integers(1, 40), label="rows")
    watermark = data.draw(st.sampled_from(["timestamptz not null", "timestamptz", "text"]), label="watermark")
    configure(replication, batch_rows=data.draw(st.integers(1, 50), label="batch_rows"))
    name = "updated_at" if watermark != "text" else "no_watermark"
    replication.on_source(f"create table {table_name} (item_id int primary key, amount int, {name} {watermark})")
    replication.run_one(table_name)
    refuse_amounts(replication, "amount >= 0", table_name)
    accepted, bad = {}, set()
    for version in range(1, data.draw(st.integers(1, 3), label="runs") + 1):
        for item_id, is_bad in data.draw(
            st.dictionaries(st.integers(1, rows), st.booleans(), min_size=1), label="changes"
        ).items():
            replication.on_source(
                f"insert into {table_name} values (%s, %s, clock_timestamp()) "
                f"on conflict (item_id) do update set amount = excluded.amount, {name} = excluded.{name}",
                item_id,
                -version if is_bad else version,
            )
            if is_bad:
                bad.add(item_id)
            else:
                bad.discard(item_id)
                accepted[item_id] = version

        replication.run_one(table_name)

        assert raw_amounts(replication, table_name) == accepted
        assert rejected_ids(replication, table_name) == sorted(bad)


# ---------------------------------------------------------------------------------------------------------------------
# How many are too many


def test_bad_rows_up_to_the_limit_are_rejected(items):
    configure(items, max_rejected_rows=3)
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2, 3)

    first = items.run_one("items")
    again = items.run_one("items")

    assert {"first": first.rows_rejected, "again": again.rows_rejected} == {"first": 3, "again": 3}
    assert rejected_ids(items) == [1, 2, 3]


def test_default_limit_is_a_hundred_bad_rows(replication):
    make_items(replication, 200)
    refuse_amounts(replication)
    change_items(replication, "amount = 1000", *range(1, 101))
    replication.run_one("items")
    change_items(replication, "amount = 1000", 101)

    (result,) = replication.run("items").tables

    assert result.status == "failed"
    assert "max_rejected_rows = 100" in str(result.error)
    assert len(rejected_ids(replication)) == 100


def test_one_bad_row_too_many_fails_and_rolls_back_its_batch(items):
    items.on_source("create table notes (note_id int primary key)")
    items.run_one("notes")
    items.on_source("insert into notes values (1)")
    configure(items, max_rejected_rows=3)
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2, 3, 4)
    change_items(items, "amount = 500", 5)
    watermark = items.on_target("select watermark from etl.watermarks where table_name = 'items'")

    run = items.run()
    notes, result = sorted(run.tables, key=lambda table: table.table_name, reverse=True)

    assert statuses(run) == {"notes": "succeeded", "items": "failed"}, run
    assert "the target refuses more than max_rejected_rows = 3 rows" in str(result.error)
    assert "item_id = 4" in str(result.error)
    assert "(SQLSTATE 23514)" in str(result.error)
    assert "tables.yml" in str(result.error)
    assert rejected_ids(items) == []
    assert raw_amounts(items)[5] == 5
    assert items.on_target("select watermark from etl.watermarks where table_name = 'items'") == watermark
    assert pick(notes, "table_name", "status", "rows_inserted") == ("notes", "succeeded", 1)
    assert ledger_counts(items, "items") == (0, 0, 0, 0, 0)


def ledger_counts(replication, table_name):
    """Return rows read, inserted, updated, unchanged and rejected of the last run."""
    names = ("rows_read", "rows_inserted", "rows_updated", "rows_unchanged", "rows_rejected")
    (row,) = replication.on_target(
        f"select {', '.join(names)} from etl.table_runs where table_name = %s order by run_id desc limit 1", table_name
    )
    return pick(dict(zip(names, row, strict=True)), *names)


def test_earlier_batches_stay_when_one_exceeds_the_limit(items):
    configure(items, max_rejected_rows=1, batch_rows=10)
    refuse_amounts(items)
    for item_id in range(1, 31):
        change_items(items, "amount = 1000" if item_id in (8, 18, 28) else "amount = 500", item_id)

    (result,) = items.run("items").tables

    amounts = raw_amounts(items)
    assert result.status == "failed"
    assert rejected_ids(items) == [8]
    assert [item_id for item_id, amount in amounts.items() if amount == 500] == [1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert pick(result, "rows_read", "rows_rejected") == (10, 1)


def test_limit_of_bad_rows_may_be_zero(items):
    configure(items, max_rejected_rows=0)
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1)

    (result,) = items.run("items").tables

    assert result.status == "failed"
    assert "more than max_rejected_rows = 0 rows" in str(result.error)


def test_only_currently_bad_rows_count_against_the_limit(items):
    """One of two rejects is mended, and one is allowed from now on."""
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2)
    items.run_one("items")
    change_items(items, "amount = 1", 1)
    configure(items, max_rejected_rows=1)

    items.run_one("items")

    assert rejected_ids(items) == [2]


# ---------------------------------------------------------------------------------------------------------------------
# What is told


def test_status_counts_the_rejected_rows(items):
    refuse_amounts(items)
    change_items(items, "amount = 1000", *range(1, 13))
    items.run_one("items")

    shown = items.command("status")
    (record,) = json.loads(items.command("status", "--json").stdout)

    assert shown.stdout.splitlines()[0].split("  ")[-2].strip() == "rejected"
    assert shown.stdout.splitlines()[1].split()[-1] == "12"
    assert record["rejected_rows"] == 12


def test_run_reports_rejected_rows_and_their_location(items):
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2)

    finished = items.command("run", "--json")

    (record,) = json.loads(finished.stdout)["tables"]
    assert finished.returncode == 0
    assert record["rows_rejected"] == 2
    assert "2 rejected (see etl.rejected_rows)" in finished.stderr


def test_every_row_read_is_counted_by_its_outcome(items):
    items.on_source("update items set updated_at = '2999-01-01Z' where item_id = 6")
    items.run_one("items")
    items.on_source("update items set updated_at = updated_at where item_id = 6")  # a new version of the same content
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2)
    change_items(items, "amount = 500", 3, 4, 5)
    items.on_source("insert into items select n, 'new', 1 from generate_series(31, 34) as n")

    result = items.run_one("items")

    counted = (10, 4, 3, 1, 2)
    assert ledger_counts(items, "items") == counted
    assert counted == (
        result.rows_read,
        result.rows_inserted,
        result.rows_updated,
        result.rows_unchanged,
        result.rows_rejected,
    )


@pytest.mark.parametrize("watermark", ["updated_at", None], ids=["that changed again", "of a table read whole"])
def test_reject_read_twice_in_a_run_counts_once(items, watermark):
    """It is read by its key, for it was refused before, and once more among the rows that changed."""
    items.configure({"tables": {"items": {"watermark": watermark}}})
    items.run_one("items")
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2)
    items.run_one("items")
    change_items(items, "amount = 1001", 1, 2)

    result = items.run_one("items")

    assert rejected_ids(items) == [1, 2]
    assert result.rows_rejected == 2
    assert result.rows_read == sum(ledger_counts(items, "items")[1:])


# ---------------------------------------------------------------------------------------------------------------------
# How a reject ends


@pytest.fixture
def with_rejects(items):
    """Items 1 and 2 are refused; the run that refused them is over."""
    refuse_amounts(items)
    change_items(items, "amount = 1000", 1, 2)
    items.run_one("items")
    return items


def test_a_later_good_version_clears_the_reject(with_rejects):
    change_items(with_rejects, "amount = 7", 1)

    with_rejects.run_one("items")

    assert rejected_ids(with_rejects) == [2]
    assert raw_amounts(with_rejects)[1] == 7


def test_later_bad_version_keeps_the_first_run_of_the_reject(with_rejects):
    change_items(with_rejects, "amount = 2000", 1)

    with_rejects.run_one("items")

    (first, second) = sorted(with_rejects.on_target(REJECTS, "items"))
    run_id = result_run(with_rejects)
    assert first[3].split("\t")[2] == "2000"
    assert (first[4], first[5]) == (second[4], second[5]) == (run_id, run_id - 1)


def test_a_row_deleted_at_the_source_clears_the_reject(with_rejects):
    with_rejects.on_source("delete from items where item_id = 1")

    with_rejects.run_one("items")

    assert rejected_ids(with_rejects) == [2]


def test_all_rows_deleted_at_the_source_clear_the_rejects(with_rejects):
    with_rejects.configure({"defaults": {"deletes": "none"}})
    with_rejects.on_source("delete from items where item_id in (1, 2)")

    with_rejects.run_one("items")

    assert rejected_ids(with_rejects) == []


def test_row_arrives_once_the_target_is_fixed(with_rejects):
    with_rejects.on_target("alter table raw.items drop constraint amounts")

    result = with_rejects.run_one("items")

    source, raw = with_rejects.rows("items")
    assert rejected_ids(with_rejects) == []
    assert pick(result, "rows_updated", "rows_rejected") == (2, 0)
    assert source == raw


def test_recreated_raw_table_has_no_old_rejects(with_rejects):
    with_rejects.on_target("drop table raw.items")

    with_rejects.run_one("items")

    source, raw = with_rejects.rows("items")
    assert rejected_ids(with_rejects) == []
    assert source == raw


def test_reject_fixed_during_a_run_is_cleared_in_that_run(items):
    """The row is refused at the run's first snapshot and accepted at a later one."""
    configure(items, batch_rows=5)
    refuse_amounts(items)
    for item_id in range(1, 31):
        change_items(items, "amount = 1000" if item_id == 1 else "amount = 500", item_id)
    mended = []

    def mend_once(event):
        if event.kind == "batch_committed" and not mended:
            mended.append(rejected_ids(items))
            items.on_target("alter table raw.items drop constraint amounts")

    etl.run(dataclasses.replace(items.settings, max_snapshot_seconds=0.0), observe=mend_once)

    source, raw = items.rows("items")
    assert mended == [[1]]
    assert source == raw
    assert rejected_ids(items) == []


def test_child_of_a_later_parent_arrives_with_the_next_run(replication):
    replication.on_source("create table parents (parent_id int primary key)")
    replication.on_source("create table children (child_id int primary key, parent_id int references parents)")
    replication.run()
    replication.on_target("alter table raw.children add foreign key (parent_id) references raw.parents")
    replication.on_source("insert into parents values (1); insert into children values (1, 1)")
    replication.run_one("children")
    refused = rejected_ids(replication, "children")
    replication.run_one("parents")

    replication.run_one("children")

    assert refused == [1]
    assert rejected_ids(replication, "children") == []
    assert replication.on_target("select count(*) from raw.children") == [(1,)]


def test_unique_values_moving_between_rows_arrive(replication):
    """Each name moves to the row before, which can only take it once the next one has given it up."""
    make_items(replication, 4)
    items = replication
    items.on_target("alter table raw.items add unique (name)")
    items.on_source("update items set name = 'name ' || item_id + 1, updated_at = clock_timestamp()")

    refused = []
    while not refused or refused[-1]:
        items.run_one("items")
        refused.append(len(rejected_ids(items)))
        assert len(refused) <= 4

    source, raw = items.rows("items")
    assert source == raw


# ---------------------------------------------------------------------------------------------------------------------
# Text that one side cannot hold


@contextlib.contextmanager
def encoded_database(server, encoding):
    """Make a database whose collation goes with any encoding, and give its URL."""
    name = sql.Identifier(f"encoded_{encoding.lower()}_{next(_numbers)}")
    create = "create database {} template template0 encoding {} lc_collate 'C' lc_ctype 'C'"
    with contextlib.closing(psycopg2.connect(server.url())) as control, control.cursor() as cursor:
        control.autocommit = True
        cursor.execute(sql.SQL(create).format(name, sql.Literal(encoding)))
        yield server.url(name.string)
        cursor.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture
def with_latin1_target(source_url, target_server, replicate_between):
    """A replication into a database that has no euro sign."""
    with encoded_database(target_server, "LATIN1") as url:
        yield replicate_between(source_url, url)


@pytest.fixture
def replicate_from(source_server, target_url, replicate_between):
    """A function that makes a replication from a database in another encoding."""
    with contextlib.ExitStack() as databases:
        yield lambda encoding: replicate_between(
            databases.enter_context(encoded_database(source_server, encoding)), target_url
        )


def make_words(replication, *words):
    replication.on_source(
        "create table words (word text primary key, note text, updated_at timestamptz not null default now())"
    )
    add_words(replication, *words)


def add_words(replication, *words):
    for word, note in words:
        replication.on_source("insert into words (word, note) values (%s, %s)", word, note)


WORDS = [("a", "plain"), ("é", "ÿ is the last"), ("€ in the key", "x"), ("z", "€ and 😀"), ("😀", "both €")]
REFUSED_WORDS = [("z",), ("€ in the key",), ("😀",)]


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_first_load_rejects_text_the_target_cannot_store(with_latin1_target, batch_rows):
    replication = with_latin1_target
    configure(replication, batch_rows=batch_rows)
    make_words(replication, *WORDS)

    result = replication.run_one("words")

    found = replication.on_target(REJECTS, "words")
    source, raw = replication.rows("words")
    assert rejected_keys(replication, "words") == REFUSED_WORDS
    assert {row[1] for row in found} == {"22P05"}
    assert [row for row in found if not (row[0].isascii() and row[2].isascii() and row[3].isascii())] == []
    assert set(raw) == {row for row in source if row.encode("latin-1", "ignore").decode("latin-1") == row}
    assert pick(result, "rows_inserted", "rows_rejected") == (2, 3)


@pytest.mark.parametrize("note_type", ["text", "varchar(500)"], ids=["in binary form", "in text form"])
def test_later_load_rejects_text_the_target_cannot_store(with_latin1_target, note_type):
    """A type that the owner of `raw` changed makes rows travel in text form."""
    replication = with_latin1_target
    make_words(replication, ("b", "plain"))
    replication.run_one("words")
    replication.on_target(f"alter table raw.words alter column note type {note_type}")
    add_words(replication, *WORDS)

    result = replication.run_one("words")

    assert rejected_keys(replication, "words") == REFUSED_WORDS
    assert pick(result, "rows_inserted", "rows_rejected") == (2, 3)


def test_text_fixed_on_the_source_arrives(with_latin1_target):
    replication = with_latin1_target
    make_words(replication, *WORDS)
    replication.run_one("words")
    replication.on_source("update words set note = 'euro' where word = 'z'")  # not even the watermark moves
    replication.on_source("delete from words where word = '€ in the key'")
    replication.on_source("update words set word = 'smile', note = 'none', updated_at = now() where word = '😀'")

    replication.run_one("words")

    source, raw = replication.rows("words")
    assert rejected_keys(replication, "words") == []
    assert source == raw


@pytest.mark.parametrize("load_range_blocks", [1, 131_072], ids=["in ranges", "in one transaction"])
def test_load_in_ranges_restarts_when_its_last_row_is_rejected(with_latin1_target, load_range_blocks):
    replication = with_latin1_target
    make_words(replication)
    replication.on_source("insert into words select n, repeat('x', 100) from generate_series(1, 500) as n")
    add_words(replication, ("€", "last"))

    result = replication.run_one("words", load_range_blocks=load_range_blocks)

    assert rejected_keys(replication, "words") == [("€",)]
    assert replication.on_target("select count(*) from raw.words") == [(500,)]
    assert replication.on_target("select count(*) from pg_class where relname like '%loading%'") == [(0,)]
    assert pick(result, "rows_inserted", "rows_rejected") == (500, 1)


def test_too_many_unstorable_keys_fail_only_their_table(with_latin1_target):
    """The message names the last key, which the ledger has to hold as well."""
    replication = with_latin1_target
    configure(replication, max_rejected_rows=1)
    make_words(replication, *WORDS)
    replication.on_source("create table notes (note_id int primary key); insert into notes values (1)")

    results = {table.table_name: table for table in replication.run().tables}

    assert results["notes"].status == "succeeded"
    assert results["words"].status == "failed"
    assert "max_rejected_rows = 1" in str(results["words"].error)
    assert replication.on_target("select count(*) from raw.words") == [(0,)]


def test_table_with_an_unstorable_name_fails_alone(with_latin1_target):
    replication = with_latin1_target
    replication.on_source('create table "€" (id int primary key); insert into "€" values (1)')
    replication.on_source("create table notes (note_id int primary key); insert into notes values (1)")

    results = {table.table_name: table for table in replication.run().tables}

    assert results["notes"].status == "succeeded"
    assert results["€"].status == "failed"


ENCODED = {
    "LATIN1": ["é", "ß", "ÿ", "Ö", "æ", "\u00a0", "ascii"],
    "EUC_JP": ["日本語", "カタカナ", "ひらがな", "Ω", "Я", "ascii"],
    "WIN1252": ["€", "“quoted”", "é", "ascii"],
}


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
@pytest.mark.parametrize("encoding", ENCODED)
def test_text_in_another_encoding_arrives_exactly_also_as_key(replicate_from, encoding, batch_rows):
    replication = replicate_from(encoding)
    configure(replication, batch_rows=batch_rows)
    make_words(replication, *[(word, word * 2) for word in ENCODED[encoding]])
    replication.run_one("words")
    replication.on_source("update words set note = note || word, updated_at = clock_timestamp()")

    result = replication.run_one("words")

    source, raw = replication.rows("words")
    assert result.rows_updated == len(ENCODED[encoding])
    assert source == raw


def test_rejected_text_in_another_encoding_is_retried_by_key(replicate_from):
    replication = replicate_from("EUC_JP")
    make_words(replication, *[(word, word) for word in ENCODED["EUC_JP"]])
    replication.run_one("words")
    replication.on_target("alter table raw.words add constraint short check (length(note) < 5) not valid")
    replication.on_source(
        "update words set note = '日本日本日本', updated_at = clock_timestamp() where word = '日本語'"
    )
    replication.run_one("words")
    refused = rejected_keys(replication, "words")
    replication.on_target("alter table raw.words drop constraint short")

    replication.run_one("words")

    source, raw = replication.rows("words")
    assert refused == [("日本語",)]
    assert source == raw


def test_verify_treats_text_in_two_encodings_as_equal(replicate_from):
    replication = replicate_from("LATIN1")
    make_words(replication, *[(word, word) for word in ENCODED["LATIN1"]])
    replication.run_one("words")

    finished = replication.command("verify")

    assert finished.returncode == 0, finished.stdout


def test_sql_ascii_source_is_rejected(replicate_from):
    replication = replicate_from("SQL_ASCII")
    make_words(replication, ("a", "plain"))

    with pytest.raises(UnavailableError, match="has encoding SQL_ASCII, so the encoding of its text is unknown"):
        replication.run()

    assert replication.on_target("select count(*) from etl.runs") == [(0,)]
    assert replication.command("run").returncode == 3
