with

items as (
    select * from {{ ref('stg_order_items') }}
    where not is_deleted
),

orders as (
    select * from {{ ref('stg_orders') }}
    where not is_deleted and status <> 'cart'
),

products as (
    select * from {{ ref('int_products_history') }}
),

customers as (
    select * from {{ ref('int_customers_history') }}
),

enriched as (
    select
        items.order_item_id,
        items.order_id,
        items.product_id,
        orders.customer_id,
        orders.campaign_id,
        orders.status as order_status,
        orders.channel,
        products.category as product_category,
        customers.tier as customer_tier,
        customers.country_code as customer_country_code,
        items.quantity,
        items.unit_price_usd,
        items.quantity * items.unit_price_usd as gross_usd,
        items.discount_usd,
        items.quantity * items.unit_price_usd - items.discount_usd as net_usd,
        items.quantity * products.cost_usd as cost_usd,
        items.quantity * items.unit_price_usd - items.discount_usd - items.quantity * products.cost_usd as margin_usd,
        orders.ordered_at,
        (orders.ordered_at at time zone 'UTC')::date as order_date
    from items
    inner join orders on items.order_id = orders.order_id
    left join products
        on items.product_id = products.product_id and {{ was_valid_at('products', 'orders.ordered_at') }}
    left join customers
        on orders.customer_id = customers.customer_id and {{ was_valid_at('customers', 'orders.ordered_at') }}
)

select * from enriched
