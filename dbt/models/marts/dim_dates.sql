with

bounds as (
    select
        date_trunc('year', min(ordered_at at time zone 'UTC')) as first_day,
        date_trunc('year', max(ordered_at at time zone 'UTC')) + interval '1 year - 1 day' as last_day
    from {{ ref('stg_orders') }}
),

days as (
    select generate_series(bounds.first_day, bounds.last_day, interval '1 day')::date as date_day
    from bounds
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
        date_trunc('week', date_day)::date as week_start_date,
        date_trunc('month', date_day)::date as month_start_date
    from days
)

select * from described
