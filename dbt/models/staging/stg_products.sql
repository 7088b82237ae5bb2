with

source as (
    select * from {{ source('raw', 'products') }}
),

renamed as (
    select
        source.product_id,
        source.sku,
        source.name as product_name,
        source.category,
        source.price as price_usd,
        source.cost as cost_usd,
        source.is_active,
        source.created_at,
        source.updated_at,
        source.attributes,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
