"""The throttle keeps to its rate over any stretch of time, and passes bytes on as they are."""

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.postgres.copy_pipe import Outlet
from etl.postgres.throttle import Throttle

RATE = 1000.0  # bytes a second


@pytest.fixture
def clock():
    return make_clock()


def make_clock():
    """A clock that moves only by sleeping, or when it is set."""
    clock = SimpleNamespace(now=100.0)
    clock.read = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    return clock


TAKEN = st.tuples(st.integers(1, 5000), st.floats(0, 10))  # bytes, and seconds of other work after them


@given(st.lists(TAKEN, min_size=1, max_size=20))
def test_no_interval_exceeds_the_byte_rate(taken):
    clock = make_clock()
    throttle = Throttle(RATE, clock=clock.read, sleep=clock.sleep)
    stretches = []
    for size, other_work in taken:
        begun = clock.now
        throttle.take(size)
        stretches.append((begun, clock.now, size))
        clock.now += other_work

    for first, (begun, _, _) in enumerate(stretches):
        for last in range(first, len(stretches)):
            size = sum(each[2] for each in stretches[first : last + 1])
            assert stretches[last][1] - begun >= size / RATE - 1e-6


def test_no_wait_is_longer_than_the_rate_requires(clock):
    throttle = Throttle(RATE, clock=clock.read, sleep=clock.sleep)

    for _ in range(10):
        throttle.take(500)

    assert clock.now == pytest.approx(105.0)


@given(st.lists(st.binary(max_size=3000), max_size=10), st.integers(1, 2000))
def test_data_is_passed_on_and_the_underlying_file_stays_open(chunks, chunk_bytes):
    clock = make_clock()
    into = io.BytesIO()

    throttle = Throttle(RATE, clock=clock.read, sleep=clock.sleep)
    with io.BufferedWriter(Outlet(into, None, throttle), chunk_bytes) as file:
        for number, chunk in enumerate(chunks, 1):
            file.write(chunk)
            assert file.tell() == sum(map(len, chunks[:number]))

    assert into.getvalue() == b"".join(chunks)
    assert clock.now == pytest.approx(100.0 + len(into.getvalue()) / RATE)
