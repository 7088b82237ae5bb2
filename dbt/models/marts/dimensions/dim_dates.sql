{{ config(indexes=[{'columns': ['date_day'], 'unique': true}]) }}

with

instants as (
    select ordered_at as instant_at from {{ ref('stg_orders') }}
    union all
    select occurred_at as instant_at from {{ ref('stg_events') }}
    union all
    select coalesce(paid_at, created_at) as instant_at from {{ ref('stg_payments') }}
    union all
    select valid_from as instant_at from {{ ref('int_inventory_history') }}
    union all
    select coalesce(ended_at, started_at) as instant_at from {{ source('etl', 'runs') }}
),

-- A campaign without an end may have the date infinity, for which the calendar would never end.
campaign_days as (
    select start_date as date_day from {{ ref('stg_campaigns') }}
    where isfinite(start_date)
    union all
    select end_date as date_day from {{ ref('stg_campaigns') }}
    where isfinite(end_date)
),

extremes as (
    select (min(instant_at) at time zone 'UTC')::date as date_day from instants
    union all
    select (max(instant_at) at time zone 'UTC')::date as date_day from instants
    union all
    select min(date_day) as date_day from campaign_days
    union all
    select max(date_day) as date_day from campaign_days
),

bounds as (
    select
        date_trunc('year', min(date_day)::timestamp) as first_day,
        date_trunc('year', max(date_day)::timestamp) + interval '1 year - 1 day' as last_day
    from extremes
),

days as (
    select
        days.date_day::date as date_day,
        -- Shifted by whole months: the calendar year of the shifted day is the fiscal year.
        days.date_day + make_interval(months => (13 - {{ var('fiscal_year_start_month') }}) % 12) as fiscal_day
    from bounds
    cross join lateral generate_series(bounds.first_day, bounds.last_day, interval '1 day') as days (date_day)
),

described as (
    select
        date_day,
        extract(year from date_day)::integer as year_number,
        extract(quarter from date_day)::integer as quarter_number,
        extract(month from date_day)::integer as month_number,
        extract(day from date_day)::integer as day_of_month,
        extract(isoyear from date_day)::integer as iso_year_number,
        extract(week from date_day)::integer as iso_week_number,
        extract(isodow from date_day)::integer as iso_day_of_week,
        extract(isodow from date_day) >= 6 as is_weekend,
        extract(year from fiscal_day)::integer as fiscal_year_number,
        extract(quarter from fiscal_day)::integer as fiscal_quarter_number,
        date_trunc('week', date_day)::date as week_start_date,
        date_trunc('month', date_day)::date as month_start_date
    from days
)

select * from described
