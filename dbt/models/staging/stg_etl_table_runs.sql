with

-- Names columns instead of `*`: ledger upgrades recreate `rows_unchanged`, which a view that reads it would block.
source as (
    select
        run_id,
        table_name,
        started_at,
        ended_at,
        status,
        batches,
        rows_read,
        rows_inserted,
        rows_updated,
        rows_rejected,
        rows_deleted,
        bytes_read,
        retries,
        error
    from {{ source('etl', 'table_runs') }}
),

renamed as (
    select
        source.run_id,
        source.table_name,
        source.status,
        source.error,
        source.batches,
        source.rows_read,
        source.rows_inserted,
        source.rows_updated,
        source.rows_rejected,
        source.rows_deleted,
        source.bytes_read,
        source.retries,
        source.started_at,
        source.ended_at
    from source
)

select * from renamed
