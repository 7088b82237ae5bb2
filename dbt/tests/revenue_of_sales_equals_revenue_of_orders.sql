-- The lines of an order and the order itself have the same revenue.
select
    orders.order_id,
    orders.gross_usd,
    sum(sales.gross_usd) as gross_of_lines_usd
from {{ ref('fct_orders') }} as orders
left join {{ ref('fct_sales') }} as sales on orders.order_id = sales.order_id
where orders.order_id not in ({{ orders_touched_after(['fct_orders', 'fct_sales']) }})
group by orders.order_id, orders.gross_usd
having orders.gross_usd <> coalesce(sum(sales.gross_usd), 0)
