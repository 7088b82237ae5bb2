with

source as (
    select * from {{ source('raw', 'events') }}
),

renamed as (
    select
        source.event_id,
        source.session_id::text as session_id,
        source.customer_id,
        source.product_id,
        source.campaign_id,
        source.event_type,
        source.channel,
        source.properties ->> 'device' as device,
        source.occurred_at,
        source.properties,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
