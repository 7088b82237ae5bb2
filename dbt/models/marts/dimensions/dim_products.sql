{{ config(indexes=[{'columns': ['product_id'], 'unique': true}]) }}

with

products as (
    select * from {{ ref('stg_products') }}
    where not is_deleted
),

stock as (
    select
        product_id,
        sum(on_hand)::integer as on_hand,
        sum(available)::integer as available
    from {{ ref('stg_inventory_levels') }}
    where not is_deleted
    group by product_id
),

described as (
    select
        products.product_id,
        products.sku,
        products.product_name,
        products.category,
        products.price_usd,
        products.cost_usd,
        products.price_usd - products.cost_usd as unit_margin_usd,
        coalesce(stock.on_hand, 0) as on_hand,
        coalesce(stock.available, 0) as available,
        products.is_active,
        products.created_at
    from products
    left join stock on products.product_id = stock.product_id
)

select * from described
