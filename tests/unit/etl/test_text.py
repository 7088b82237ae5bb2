"""Names and values are one printable line, and mean the same where they are pasted."""

import json
import subprocess

import yaml
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import ConfigurationError, EtlError
from etl.text import escape_identifier, escape_in_quotes, printable, quote_word

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@given(NAMES)
def test_any_text_becomes_one_printable_line(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert text.isprintable() is (printable(text) == text)


def test_what_is_not_printable_is_shown():
    assert printable("a\nb\x1b[1m\u202e\U000e0001é\\") == "a\\nb\\x1b[1m\\u202e\\U000e0001é\\"


def test_words_mean_the_same_to_bash():
    texts = ["a\nb", "it's\t$HOME \\ `x`", "\u202e\x1b[1m\x7f", "é\x85\U0001f30a\U000e0001", "plain", "two words"]
    command = " ".join(map(quote_word, texts))

    assert command.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == texts


@given(NAMES)
def test_identifiers_mean_the_same_to_the_server(name):
    """As "Identifiers and Key Words" of the manual describes how the server reads them."""
    escaped = escape_identifier(name)

    assert escaped.isprintable()
    assert escaped[:3] + escaped[-1] == 'U&""'
    read, rest = "", escaped[3:-1].replace('""', '"')
    while rest:
        width = 0 if rest[0] != "\\" else 8 if rest[1] == "+" else 5
        read += chr(int(rest[1:width].lstrip("+"), 16)) if width else rest[0]
        rest = rest[width or 1 :]
    assert read == name


@given(NAMES)
def test_texts_in_quotes_mean_the_same_to_yaml(text):
    escaped = escape_in_quotes(json.dumps(text, ensure_ascii=False))

    assert escaped.isprintable()
    assert yaml.safe_load(escaped) == text


@given(st.lists(NAMES, min_size=1))
def test_error_has_as_many_lines_as_it_was_given(lines):
    for kind in (EtlError, ConfigurationError):
        assert str(kind(*lines)).splitlines() == [printable(line) for line in lines]
