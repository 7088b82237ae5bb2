"""The dates of the marts, day by day, against Python's calendar."""

import datetime as dt

import pytest

DAYS_OF_THE_DATA = """
    select (ordered_at at time zone 'UTC')::date from marts.fct_orders
    union select event_date from marts.fct_events
    union select payment_date from marts.fct_payments
    union select stock_date from marts.fct_inventory_daily
    union select start_date from marts.dim_campaigns
    union select end_date from marts.dim_campaigns
"""


def describe(day, fiscal_start):
    """What the marts say of a day; a fiscal year has the name of the calendar year in which it ends."""
    iso = day.isocalendar()
    months = (day.month - fiscal_start) % 12
    return {
        "date_day": day,
        "year_number": day.year,
        "quarter_number": (day.month + 2) // 3,
        "month_number": day.month,
        "day_of_month": day.day,
        "iso_year_number": iso.year,
        "iso_week_number": iso.week,
        "iso_day_of_week": iso.weekday,
        "is_weekend": day.weekday() in (5, 6),
        "fiscal_year_number": day.year + (fiscal_start > 1 and day.month >= fiscal_start),
        "fiscal_quarter_number": months // 3 + 1,
        "week_start_date": day - dt.timedelta(days=day.weekday()),
        "month_start_date": day.replace(day=1),
    }


@pytest.mark.parametrize("fiscal_start", [1, 2, 7, 12])
def test_each_day_is_described_as_in_python(warehouse, fiscal_start):
    warehouse.on_source(
        "insert into orders (customer_id, status, channel, ordered_at) "
        "values (1, 'placed', 'web', '2019-12-31 23:30+00')"
    )
    warehouse.replicate()
    warehouse.dbt("build", "--select", "dim_dates", "fct_orders", "--vars", f"fiscal_year_start_month: {fiscal_start}")
    columns = list(describe(dt.date.today(), 1))
    rows = warehouse.query(f"select {', '.join(columns)} from marts.dim_dates order by date_day")
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    days = [row["date_day"] for row in found]

    assert found == [describe(day, fiscal_start) for day in days]
    assert days == [days[0] + dt.timedelta(days=number) for number in range(len(days))]
    assert dt.date(2019, 12, 31) in days
    assert {day for (day,) in warehouse.query(DAYS_OF_THE_DATA)} <= set(days)


def test_open_ended_campaign_does_not_extend_the_calendar(warehouse):
    before = warehouse.query("select max(date_day) from marts.dim_dates")
    warehouse.on_source("update campaigns set ends_on = 'infinity' where campaign_id = 1")
    warehouse.replicate()
    warehouse.query("alter database warehouse set statement_timeout = '20s'")  # days up to infinity never end
    warehouse.build("dim_dates", "dim_campaigns")

    assert warehouse.query("select max(date_day) from marts.dim_dates") == before
    assert warehouse.query("select day_count from marts.dim_campaigns where campaign_id = 1") == [(None,)]
