{{
    config(
        unique_key='order_item_id',
        indexes=[
            {'columns': ['order_item_id'], 'unique': true},
            {'columns': ['order_id']},
            {'columns': ['order_date']},
            {'columns': ['product_id']},
            {'columns': ['customer_id']},
        ],
    )
}}

{%- call collect_touched_keys() %}
select items.order_item_id
from {{ ref('stg_order_items') }} as items
where {{ is_touched('items') }}
union
select items.order_item_id
from {{ ref('stg_order_items') }} as items
inner join {{ ref('stg_orders') }} as orders on items.order_id = orders.order_id
where {{ is_touched('orders') }}
union
select items.order_item_id
from {{ ref('stg_order_items') }} as items
inner join {{ ref('stg_orders') }} as orders on items.order_id = orders.order_id
inner join {{ ref('int_products_history') }} as products on items.product_id = products.product_id
where {{ is_touched('products') }} and {{ had_begun('products', 'orders.ordered_at') }}
union
select items.order_item_id
from {{ ref('stg_order_items') }} as items
inner join {{ ref('stg_orders') }} as orders on items.order_id = orders.order_id
inner join {{ ref('int_customers_history') }} as customers on orders.customer_id = customers.customer_id
where {{ is_touched('customers') }} and {{ had_begun('customers', 'orders.ordered_at') }}
{%- endcall %}

with

items as (
    select * from {{ ref('int_order_items_enriched') }}
    {{ where_touched('order_item_id') }}
),

sales as (
    select
        order_item_id,
        order_id,
        product_id,
        customer_id,
        campaign_id,
        order_status,
        channel,
        product_category,
        customer_tier,
        customer_country_code,
        quantity,
        unit_price_usd,
        gross_usd,
        discount_usd,
        net_usd,
        cost_usd,
        margin_usd,
        order_status in ('cancelled', 'returned') as is_reversed,
        order_status = 'returned' as is_returned,
        ordered_at,
        order_date,
        now() as dbt_built_at
    from items
)

select * from sales
