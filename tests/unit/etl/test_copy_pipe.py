"""The pipe between two COPYs: whole, or an error, never a half stream taken for a whole one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.postgres.copy_pipe import stream


def pipe(write, read):
    with stream(write) as rows:
        read(rows)
    return rows.size


def read_all(into):
    def read(file):
        while chunk := file.read(8192):
            into.append(chunk)

    return read


@given(st.lists(st.binary(max_size=200_000), max_size=5))
def test_what_is_written_is_read(chunks):
    received: list[bytes] = []

    def write(file):
        for chunk in chunks:
            file.write(chunk)

    size = pipe(write, read_all(received))

    assert b"".join(received) == b"".join(chunks)
    assert size == sum(map(len, chunks))


@given(st.lists(st.binary(max_size=100_000), max_size=3), st.integers(0, 70_000))
def test_looking_ahead_takes_nothing_from_what_is_read(chunks, size):
    received: list[bytes] = []
    ends_within: list[bool] = []

    def write(file):
        for chunk in chunks:
            file.write(chunk)

    def read(rows):
        ends_within.append(rows.ends_within(size))
        read_all(received)(rows)

    pipe(write, read)

    assert b"".join(received) == b"".join(chunks)
    assert ends_within == [sum(map(len, chunks)) <= size]


def test_immediate_writer_failure_is_raised_when_looking_ahead():
    def write(_):
        raise LookupError("the source is gone")

    with pytest.raises(LookupError, match="the source is gone"):
        pipe(write, lambda rows: rows.ends_within(21))


@given(st.integers(min_value=0, max_value=300_000))
def test_writer_failure_fails_the_reader_and_is_raised(size):
    ended = []

    def write(file):
        file.write(b"x" * size)
        raise LookupError("the source is gone")

    def read(file):
        while file.read(8192):
            pass
        ended.append("read a whole stream")

    with pytest.raises(LookupError, match="the source is gone"):
        pipe(write, read)

    assert ended == []


def test_reader_failure_stops_the_writer_and_is_raised():
    stopped = []

    def write(file):
        try:
            while True:
                file.write(b"x" * 100_000)
        except BrokenPipeError:
            stopped.append(True)
            raise

    def read(file):
        file.read(10)
        raise KeyError("the target refuses")

    with pytest.raises(KeyError, match="the target refuses"):
        pipe(write, read)

    assert stopped == [True]
