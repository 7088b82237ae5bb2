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
        -- A run that died ends when the next one finds it: how long it worked is not known.
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
