with

source as (
    select * from {{ source('raw', 'customers') }}
),

renamed as (
    select
        source.customer_id,
        source.email,
        source.first_name,
        source.last_name,
        concat_ws(' ', source.first_name, source.last_name) as full_name,
        source.phone,
        source.country::text as country_code,
        source.city,
        source.tier,
        source.attributes ->> 'source' as signup_channel,
        source.marketing_opt_in as is_opted_in,
        source.created_at,
        source.updated_at,
        source.attributes,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
