"""How a first load is divided into ranges of blocks."""

from hypothesis import given
from hypothesis import strategies as st

from etl.replicate.full_load import range_end

COUNTS = st.lists(st.integers(min_value=0, max_value=60), min_size=1, max_size=5)


def blocks_between(counts, start, end):
    """Return the blocks of all partitions in a range, by its plain definition."""
    return sum(len(range(start, min(count, end))) for count in counts)


@given(COUNTS, st.integers(min_value=1, max_value=40))
def test_ranges_are_contiguous_and_within_the_limit(counts, limit):
    start, seen = 0, 0
    while (end := range_end(counts, start, limit)) is not None:
        held = blocks_between(counts, start, end)
        one_of_each = blocks_between(counts, start, start + 1)
        assert 0 < held <= max(limit, one_of_each)
        assert blocks_between(counts, start, end + 1) > limit
        start, seen = end, seen + held

    last = blocks_between(counts, start, max(counts))
    assert seen + last == sum(counts)
    assert last <= max(limit, blocks_between(counts, start, start + 1))


def test_a_table_that_fits_one_range_has_no_end():
    assert range_end([100], 0, 100) is None
    assert range_end([], 0, 100) is None
    assert range_end([100], 0, 99) == 99
