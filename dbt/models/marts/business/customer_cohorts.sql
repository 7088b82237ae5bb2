{{ config(indexes=[{'columns': ['cohort_month_start_date', 'month_number'], 'unique': true}]) }}

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
    select date_trunc('month', max(order_date)::timestamp) as last_month from orders
),

purchases as (
    select
        orders.customer_id,
        date_trunc('month', orders.order_date::timestamp) as order_month,
        min(date_trunc('month', orders.order_date::timestamp)) over (partition by orders.customer_id) as cohort_month,
        coalesce(sales.net_usd, 0) as net_usd
    from orders
    left join sales on orders.order_id = sales.order_id
    where not orders.is_reversed
),

cohorts as (
    select
        cohort_month,
        count(distinct customer_id)::integer as cohort_size
    from purchases
    group by cohort_month
),

months as (
    select
        cohorts.cohort_month,
        cohorts.cohort_size,
        months.order_month
    from cohorts
    cross join bounds
    cross join lateral generate_series(cohorts.cohort_month, bounds.last_month, interval '1 month')
        as months (order_month)
),

activity as (
    select
        cohort_month,
        order_month,
        count(distinct customer_id)::integer as active_customer_count,
        count(*)::integer as order_count,
        sum(net_usd) as revenue_usd
    from purchases
    group by cohort_month, order_month
),

filled as (
    select
        months.cohort_month::date as cohort_month_start_date,
        months.order_month::date as month_start_date,
        (row_number() over by_age - 1)::integer as month_number,
        months.cohort_size,
        coalesce(activity.active_customer_count, 0) as active_customer_count,
        round(coalesce(activity.active_customer_count, 0)::numeric / months.cohort_size, 4) as retention_rate,
        coalesce(activity.order_count, 0) as order_count,
        coalesce(activity.revenue_usd, 0) as revenue_usd,
        coalesce(sum(activity.revenue_usd) over by_age, 0) as cumulative_revenue_usd,
        round(coalesce(sum(activity.revenue_usd) over by_age, 0) / months.cohort_size, 2)
            as cumulative_revenue_per_customer_usd
    from months
    left join activity on months.cohort_month = activity.cohort_month and months.order_month = activity.order_month
    window by_age as (partition by months.cohort_month order by months.order_month)
)

select * from filled
