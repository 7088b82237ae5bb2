{{
    config(
        materialized='incremental',
        incremental_strategy='rebuild_touched',
        unique_key='order_item_id',
        on_schema_change='append_new_columns',
        post_hook="{{ note_build() }}",
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
inner join {{ ref('stg_products') }} as products on items.product_id = products.product_id
where {{ is_touched('products') }}
{%- endcall %}

with

items as (
    select * from {{ ref('int_order_items_enriched') }}
    {%- if is_incremental() %}
        where order_item_id in (select touched.order_item_id from {{ touched_keys() }} as touched)
    {%- endif %}
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
        quantity,
        unit_price_usd,
        gross_usd,
        discount_usd,
        net_usd,
        cost_usd,
        margin_usd,
        order_status in ('cancelled', 'returned') as is_reversed,
        ordered_at,
        order_date,
        now() as dbt_built_at
    from items
)

select * from sales
