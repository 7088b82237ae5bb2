"""The statements that insert a row of the ledger or update the one with its key."""

from etl.ledger import progress, rejects, runs
from etl.ledger.tables import METADATA
from etl.postgres.sql import compose_upsert


def test_upsert_replaces_all_values_but_the_key():
    found = compose_upsert(("etl", "notes"), key=("place", "day"), values=("note", "author"))

    assert found == (
        "insert into etl.notes (place, day, note, author) values (%(place)s, %(day)s, %(note)s, %(author)s) "
        "on conflict (place, day) do update set note = excluded.note, author = excluded.author"
    )


def test_upsert_keeps_insert_only_columns_and_sets_the_stamp():
    found = compose_upsert(
        ("etl", "notes"), key=("place",), values=("note",), kept=("first_author",), stamp="changed_at"
    )

    assert found == (
        "insert into etl.notes (place, note, first_author, changed_at) "
        "values (%(place)s, %(note)s, %(first_author)s, clock_timestamp()) "
        "on conflict (place) do update set note = excluded.note, changed_at = clock_timestamp()"
    )


def test_upsert_names_are_quoted_where_needed():
    found = compose_upsert(("etl", "Notes"), key=("place",), values=("My note",))

    assert found.startswith('insert into etl."Notes" (place, "My note") ')
    assert found.endswith('on conflict (place) do update set "My note" = excluded."My note"')


def test_ledger_upserts_name_its_columns_and_primary_keys():
    for table_name, statement in (
        ("watermarks", progress.SAVE_PROGRESS),
        ("loads", progress.SAVE_LOAD),
        ("reconciliations", progress.SAVE_COUNTERS),
        ("rejected_rows", rejects.ADD_REJECT),
        ("table_runs", runs.RECORD_RETRY),
        ("table_runs", runs.FAIL_TABLE),
    ):
        table = METADATA.tables[f"etl.{table_name}"]
        names = statement.partition("(")[2].partition(")")[0].split(", ")
        key = statement.partition("on conflict (")[2].partition(")")[0].split(", ")

        assert statement.startswith(f"insert into etl.{table_name} (")
        assert set(names) <= {column.name for column in table.columns}
        assert key == [column.name for column in table.primary_key]
