with

sales as (
    select
        order_date,
        sum(net_usd) as placed_net_usd,
        coalesce(sum(net_usd) filter (where not is_reversed), 0) as net_revenue_usd
    from {{ ref('fct_sales') }}
    group by order_date
)

select
    coalesce(days.order_date, sales.order_date) as order_date,
    days.placed_net_usd,
    sales.placed_net_usd as placed_net_of_sales_usd,
    days.net_revenue_usd,
    sales.net_revenue_usd as net_revenue_of_sales_usd
from {{ ref('daily_revenue') }} as days
full join sales on days.order_date = sales.order_date
where
    coalesce(days.placed_net_usd, 0) <> coalesce(sales.placed_net_usd, 0)
    or coalesce(days.net_revenue_usd, 0) <> coalesce(sales.net_revenue_usd, 0)
