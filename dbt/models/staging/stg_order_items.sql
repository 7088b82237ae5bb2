with

source as (
    select * from {{ source('raw', 'order_items') }}
),

renamed as (
    select
        source.order_item_id,
        source.order_id,
        source.product_id,
        source.quantity,
        source.unit_price as unit_price_usd,
        source.discount as discount_usd,
        source.created_at,
        source.updated_at,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
