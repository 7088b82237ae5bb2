"""Names in statements that people paste are quoted exactly where the server needs it."""

from etl.postgres.sql import RESERVED, is_plain, quote_name


def test_reserved_words_are_known(target_url, source_url):
    from contextlib import closing

    import psycopg2

    for url in (source_url, target_url):
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("select word from pg_get_keywords() where catcode in ('R', 'T')")
            assert {word for (word,) in cursor} - RESERVED == set()
            cursor.execute("select word, quote_ident(word) = word from pg_get_keywords() where catcode in ('U', 'C')")
            assert [word for word, _ in cursor if not is_plain(word)] == []


def test_names_are_quoted_where_needed():
    assert quote_name("public", "orders") == "public.orders"
    assert quote_name("Sales", "order") == '"Sales"."order"'
    assert quote_name('a"b') == '"a""b"'
