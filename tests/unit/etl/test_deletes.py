"""The limit of deletes against its plain definition."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.policy.deletes import is_mass_delete

ROWS = st.integers(0, 10_000)
FRACTIONS = st.sampled_from([0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
LEASTS = st.sampled_from([0, 1, 10, 1000])


@pytest.mark.parametrize(
    ("missing", "rows", "expected"),
    [
        (1, 3, False),  # one row of a lookup table
        (2, 3, False),
        (3, 3, True),  # emptied, however small
        (1, 1, True),
        (10, 30, False),
        (11, 30, True),
        (9, 30, False),  # within the fraction as well
        (300, 1000, False),
        (301, 1000, True),
        (0, 0, False),
    ],
)
def test_small_deletes_pass_and_emptied_tables_stop(missing, rows, expected):
    assert is_mass_delete(missing, rows, max_fraction=0.3, max_rows=10) is expected


@given(rows=ROWS, share=st.integers(0, 10_000), fraction=FRACTIONS, least=LEASTS)
@example(rows=3, share=10_000, fraction=0.3, least=1000)
def test_deletes_stop_exactly_as_defined(rows, share, fraction, least):
    missing = rows * share // 10_000
    is_few = missing <= least and missing < rows  # too few for a fraction to mean anything, and rows are left
    is_small_part = missing <= fraction * rows

    assert is_mass_delete(missing, rows, max_fraction=fraction, max_rows=least) is not (is_few or is_small_part)


@given(rows=ROWS, share=st.integers(0, 10_000), least=LEASTS)
def test_fraction_of_one_never_stops(rows, share, least):
    assert not is_mass_delete(rows * share // 10_000, rows, max_fraction=1, max_rows=least)


@given(rows=st.integers(1, 10_000), fraction=FRACTIONS.filter(lambda fraction: fraction < 1), least=LEASTS)
def test_an_emptied_table_stops_whatever_the_least_count(rows, fraction, least):
    assert is_mass_delete(rows, rows, max_fraction=fraction, max_rows=least)


@given(rows=ROWS, missing=ROWS, fraction=FRACTIONS, least=LEASTS, more=st.integers(0, 1000))
def test_higher_limits_stop_no_more(rows, missing, fraction, least, more):
    missing = min(missing, rows)
    stops = is_mass_delete(missing, rows, max_fraction=fraction, max_rows=least)

    assert is_mass_delete(missing, rows, max_fraction=fraction, max_rows=least + more) <= stops
