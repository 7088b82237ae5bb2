{{ config(indexes=[{'columns': ['order_date'], 'unique': true}]) }}

with

dates as (
    select * from {{ ref('dim_dates') }}
),

orders as (
    select * from {{ ref('fct_orders') }}
),

sales as (
    select * from {{ ref('fct_sales') }}
),

bounds as (
    select
        min(order_date) as first_date,
        max(order_date) as last_date
    from orders
),

orders_by_day as (
    select
        order_date,
        count(*) filter (where not is_reversed) as order_count,
        count(distinct customer_id) filter (where not is_reversed) as customer_count,
        count(*) filter (where not is_reversed and is_first_order) as new_customer_order_count
    from orders
    group by order_date
),

sales_by_day as (
    select
        order_date,
        sum(quantity) filter (where not is_reversed) as unit_count,
        sum(gross_usd) filter (where not is_reversed) as gross_revenue_usd,
        sum(discount_usd) filter (where not is_reversed) as discount_usd,
        sum(net_usd) filter (where not is_reversed) as net_revenue_usd,
        sum(margin_usd) filter (where not is_reversed) as margin_usd,
        sum(net_usd) as placed_net_usd
    from sales
    group by order_date
),

days as (
    select
        dates.date_day as order_date,
        coalesce(orders_by_day.order_count, 0)::integer as order_count,
        coalesce(orders_by_day.customer_count, 0)::integer as customer_count,
        coalesce(orders_by_day.new_customer_order_count, 0)::integer as new_customer_order_count,
        coalesce(sales_by_day.unit_count, 0)::integer as unit_count,
        coalesce(sales_by_day.gross_revenue_usd, 0) as gross_revenue_usd,
        coalesce(sales_by_day.discount_usd, 0) as discount_usd,
        coalesce(sales_by_day.net_revenue_usd, 0) as net_revenue_usd,
        coalesce(sales_by_day.margin_usd, 0) as margin_usd,
        coalesce(sales_by_day.placed_net_usd, 0) as placed_net_usd,
        dates.is_weekend
    from bounds
    inner join dates on dates.date_day between bounds.first_date and bounds.last_date
    left join orders_by_day on dates.date_day = orders_by_day.order_date
    left join sales_by_day on dates.date_day = sales_by_day.order_date
),

compared as (
    select
        days.*,
        case when count(*) over seven_days = 7 then round(avg(days.net_revenue_usd) over seven_days, 2) end
            as trailing_7_day_average_usd,
        last_week.net_revenue_usd as last_week_net_revenue_usd,
        round(days.net_revenue_usd / nullif(last_week.net_revenue_usd, 0) - 1, 4) as week_on_week_change,
        last_year.net_revenue_usd as last_year_net_revenue_usd,
        round(days.net_revenue_usd / nullif(last_year.net_revenue_usd, 0) - 1, 4) as year_on_year_change
    from days
    left join days as last_week on days.order_date - 7 = last_week.order_date
    left join days as last_year on (days.order_date - interval '1 year')::date = last_year.order_date
    window seven_days as (order by days.order_date rows between 6 preceding and current row)
)

select * from compared
