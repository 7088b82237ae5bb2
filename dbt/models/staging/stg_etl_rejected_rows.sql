with

source as (
    select
        table_name,
        key,
        sqlstate,
        message,
        run_id,
        first_run_id,
        rejected_at
    from {{ source('etl', 'rejected_rows') }}
),

renamed as (
    select
        source.table_name,
        source.key as row_key,
        source.run_id,
        source.first_run_id,
        source.sqlstate,
        source.message,
        source.rejected_at
    from source
)

select * from renamed
