with

source as (
    select
        run_id,
        started_at,
        ended_at,
        status,
        error
    from {{ source('etl', 'runs') }}
),

renamed as (
    select
        source.run_id,
        source.status,
        source.error,
        -- The end of a run that died is when the next run found it, so its duration is unknown.
        case
            when source.status in ('succeeded', 'failed')
                then extract(epoch from source.ended_at - source.started_at)
        end as duration_seconds,
        source.started_at,
        source.ended_at,
        (source.started_at at time zone 'UTC')::date as run_date
    from source
)

select * from renamed
