{{ config(materialized='view') }}

with

history as (
    select * from {{ ref('int_products_history') }}
),

described as (
    select
        product_id,
        version_number,
        sku,
        product_name,
        category,
        price_usd,
        cost_usd,
        price_usd - cost_usd as unit_margin_usd,
        is_active,
        is_deleted,
        valid_to is null as is_current,
        valid_from,
        valid_to
    from history
)

select * from described
