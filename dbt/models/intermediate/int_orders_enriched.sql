with

orders as (
    select * from {{ ref('stg_orders') }}
    where not is_deleted and status <> 'cart'
),

customers as (
    select * from {{ ref('int_customers_history') }}
),

enriched as (
    select
        orders.order_id,
        orders.customer_id,
        orders.campaign_id,
        orders.status,
        orders.channel,
        customers.tier as customer_tier,
        customers.country_code as customer_country_code,
        orders.subtotal_usd,
        orders.discount_usd,
        orders.tax_usd,
        orders.shipping_usd,
        orders.total_usd,
        orders.ordered_at,
        (orders.ordered_at at time zone 'UTC')::date as order_date,
        orders.shipped_at,
        orders.delivered_at
    from orders
    left join customers
        on orders.customer_id = customers.customer_id and {{ was_valid_at('customers', 'orders.ordered_at') }}
)

select * from enriched
