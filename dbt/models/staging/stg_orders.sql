with

source as (
    select * from {{ source('raw', 'orders') }}
),

renamed as (
    select
        source.order_id,
        source.customer_id,
        source.campaign_id,
        source.status,
        source.channel,
        source.subtotal as subtotal_usd,
        source.discount as discount_usd,
        source.tax as tax_usd,
        source.shipping as shipping_usd,
        source.total as total_usd,
        source.ordered_at,
        source.shipped_at,
        source.delivered_at,
        source.created_at,
        source.updated_at,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
