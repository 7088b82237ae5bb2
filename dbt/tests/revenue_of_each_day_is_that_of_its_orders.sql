with

sales as (
    select
        order_date,
        sum(gross_usd) as gross_usd,
        sum(net_usd) as net_usd,
        sum(cost_usd) as cost_usd
    from {{ ref('fct_sales') }}
    where order_id not in ({{ orders_touched_after(['fct_orders', 'fct_sales']) }})
    group by order_date
),

orders as (
    select
        order_date,
        sum(gross_usd) as gross_usd,
        sum(gross_usd - discount_usd) as net_usd,
        sum(cost_usd) as cost_usd
    from {{ ref('fct_orders') }}
    where order_id not in ({{ orders_touched_after(['fct_orders', 'fct_sales']) }})
    group by order_date
)

select
    coalesce(sales.order_date, orders.order_date) as order_date,
    sales.gross_usd as gross_of_sales_usd,
    orders.gross_usd as gross_of_orders_usd,
    sales.net_usd as net_of_sales_usd,
    orders.net_usd as net_of_orders_usd,
    sales.cost_usd as cost_of_sales_usd,
    orders.cost_usd as cost_of_orders_usd
from sales
full join orders on sales.order_date = orders.order_date
where
    coalesce(sales.gross_usd, 0) <> coalesce(orders.gross_usd, 0)
    or coalesce(sales.net_usd, 0) <> coalesce(orders.net_usd, 0)
    or coalesce(sales.cost_usd, 0) <> coalesce(orders.cost_usd, 0)
