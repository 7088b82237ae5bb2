with

source as (
    select * from {{ source('raw', 'inventory_levels') }}
),

renamed as (
    select
        source.product_id,
        source.warehouse_code,
        source.on_hand,
        source.reserved,
        source.on_hand - source.reserved as available,
        source.reorder_point,
        source.created_at,
        source.updated_at,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
