with

source as (
    select * from {{ source('raw', 'payments') }}
),

renamed as (
    select
        source.payment_id,
        source.order_id,
        source.method,
        source.status,
        source.amount as amount_usd,
        source.paid_at,
        source.created_at,
        source.updated_at,
        source._etl_run_id,
        source._etl_deleted_at is not null as is_deleted
    from source
)

select * from renamed
