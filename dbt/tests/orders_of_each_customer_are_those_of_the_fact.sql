with

orders as (
    select
        customer_id,
        count(*) as order_count,
        sum(total_usd) filter (where not is_reversed) as lifetime_total_usd
    from {{ ref('fct_orders') }}
    group by customer_id
)

select
    customers.customer_id,
    customers.order_count,
    orders.order_count as order_count_of_fact,
    customers.lifetime_total_usd,
    orders.lifetime_total_usd as lifetime_total_of_fact_usd
from {{ ref('dim_customers') }} as customers
left join orders on customers.customer_id = orders.customer_id
where
    customers.order_count <> coalesce(orders.order_count, 0)
    or customers.lifetime_total_usd <> coalesce(orders.lifetime_total_usd, 0)
