with

source as (
    select * from {{ source('raw', 'campaigns') }}
),

renamed as (
    select
        source.campaign_id,
        source.name as campaign_name,
        source.channel,
        source.budget as budget_usd,
        source.spend as spend_usd,
        source.starts_on as start_date,
        source.ends_on as end_date,
        source.created_at,
        source.updated_at,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
