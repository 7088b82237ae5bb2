{{ config(indexes=[{'columns': ['customer_id'], 'unique': true}]) }}

with

orders as (
    select
        *,
        row_number() over (partition by customer_id, is_reversed order by ordered_at, order_id) as kept_order_number
    from {{ ref('fct_orders') }}
),

sales as (
    select
        customer_id,
        sum(net_usd) as lifetime_revenue_usd
    from {{ ref('fct_sales') }}
    where not is_reversed
    group by customer_id
),

customers as (
    select
        customer_id,
        count(*) filter (where not is_reversed)::integer as order_count,
        count(*) filter (where is_reversed)::integer as reversed_order_count,
        min(order_date) filter (where not is_reversed) as first_order_date,
        min(order_date) filter (where not is_reversed and kept_order_number = 2) as second_order_date,
        max(order_date) filter (where not is_reversed) as last_order_date
    from orders
    group by customer_id
    having count(*) filter (where not is_reversed) >= 2
),

described as (
    select
        customers.customer_id,
        customers.order_count,
        customers.reversed_order_count,
        customers.second_order_date - customers.first_order_date as days_to_second_order,
        round((customers.last_order_date - customers.first_order_date)::numeric / (customers.order_count - 1), 2)
            as average_days_between_orders,
        coalesce(sales.lifetime_revenue_usd, 0) as lifetime_revenue_usd,
        customers.first_order_date,
        customers.second_order_date,
        customers.last_order_date
    from customers
    left join sales on customers.customer_id = sales.customer_id
)

select * from described
