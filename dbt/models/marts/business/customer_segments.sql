{{
    config(
        indexes=[
            {'columns': ['customer_id', 'month_start_date'], 'unique': true},
            {'columns': ['month_start_date', 'segment']},
        ],
    )
}}

with

orders as (
    select * from {{ ref('fct_orders') }}
),

sales as (
    select
        order_id,
        sum(net_usd) as net_usd
    from {{ ref('fct_sales') }}
    group by order_id
),

bounds as (
    select
        max(order_date) as last_date,
        date_trunc('month', max(order_date)::timestamp) as last_month
    from orders
),

-- The newest month has not ended, so it is measured as of the newest order.
months as (
    select
        months.month_start::date as month_start_date,
        least((months.month_start + interval '1 month - 1 day')::date, bounds.last_date) as as_of_date,
        months.month_start = bounds.last_month as is_current
    from bounds
    cross join lateral generate_series(
        bounds.last_month - make_interval(months => {{ var('segment_months') }} - 1),
        bounds.last_month,
        interval '1 month'
    ) as months (month_start)
),

measured as (
    select
        orders.customer_id,
        months.month_start_date,
        months.as_of_date,
        months.is_current,
        count(*)::integer as lifetime_order_count,
        months.as_of_date - max(orders.order_date) as recency_days,
        count(*) filter (where orders.order_date > months.as_of_date - 365)::integer as frequency,
        coalesce(sum(sales.net_usd) filter (where orders.order_date > months.as_of_date - 365), 0) as monetary_usd
    from months
    inner join orders on months.as_of_date >= orders.order_date
    left join sales on orders.order_id = sales.order_id
    where not orders.is_reversed
    group by orders.customer_id, months.month_start_date, months.as_of_date, months.is_current
),

scored as (
    select
        *,
        {{ fifth_by('recency_days desc', 'month_start_date') }} as recency_score,
        {{ fifth_by('frequency', 'month_start_date') }} as frequency_score,
        {{ fifth_by('monetary_usd', 'month_start_date') }} as monetary_score
    from measured
),

named as (
    select
        *,
        concat(recency_score, frequency_score, monetary_score) as rfm_code,
        case
            when frequency = 0 then 'lost'
            when recency_score >= 4 and lifetime_order_count = 1 then 'new'
            when recency_score >= 4 and frequency_score >= 4 and monetary_score >= 4 then 'champions'
            when recency_score >= 3 and frequency_score >= 4 then 'loyal'
            when recency_score >= 3 then 'promising'
            when frequency_score >= 3 then 'at_risk'
            when recency_score = 2 then 'hibernating'
            else 'lost'
        end as segment
    from scored
)

select * from named
