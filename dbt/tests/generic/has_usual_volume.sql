{#
    The newest complete day, UTC, has about as many rows as the mean of the days before it.

    A day is complete once a successful run has begun after it. Only the newest day is checked, so that a warning does
    not last for a month. With a mean below `least_mean` the rule holds, because chance alone would break it.
#}
{% test has_usual_volume(
    model, instant_column, trailing_days=28, least_fraction=0.5, greatest_fraction=2, least_mean=10
) %}
with

newest as (
    select (max(runs.started_at) at time zone 'UTC')::date - 1 as newest_date
    from {{ source('etl', 'runs') }} as runs
    where runs.status = 'succeeded'
),

counted as (
    select
        ({{ instant_column }} at time zone 'UTC')::date as counted_date,
        count(*) as row_count
    from {{ model }}
    where {{ instant_column }} is not null
    group by 1
),

days as (
    select
        days.counted_date::date as counted_date,
        days.counted_date::date = newest.newest_date as is_newest,
        coalesce(counted.row_count, 0) as row_count
    from newest
    cross join lateral generate_series(
        greatest(newest.newest_date - {{ trailing_days }}, (select min(counted.counted_date) from counted)),
        newest.newest_date,
        interval '1 day'
    ) as days (counted_date)
    left join counted on days.counted_date::date = counted.counted_date
),

compared as (
    select
        max(counted_date) as counted_date,
        max(row_count) filter (where is_newest) as row_count,
        round(avg(row_count) filter (where not is_newest), 1) as trailing_mean
    from days
)

select *
from compared
where
    trailing_mean >= {{ least_mean }}
    and row_count not between {{ least_fraction }} * trailing_mean and {{ greatest_fraction }} * trailing_mean
{% endtest %}
