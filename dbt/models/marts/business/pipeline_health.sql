{{ config(group='data_platform', indexes=[{'columns': ['run_date'], 'unique': true}]) }}

with

runs as (
    select
        *,
        {{ hours_between('lag(ended_at) over (partition by status order by ended_at)', 'ended_at') }} as hours_since
    from {{ ref('stg_etl_runs') }}
),

table_runs as (
    select
        run_id,
        sum(rows_read) as rows_read,
        sum(rows_inserted) as rows_inserted,
        sum(rows_updated) as rows_updated,
        sum(rows_deleted) as rows_deleted,
        sum(rows_rejected) as rows_rejected,
        sum(retries) as retries,
        count(*) filter (where status = 'failed') as failed_tables
    from {{ ref('stg_etl_table_runs') }}
    group by run_id
),

rejected_rows as (
    select
        first_run_id as run_id,
        count(*) as open_rejected_rows
    from {{ ref('stg_etl_rejected_rows') }}
    group by first_run_id
),

days as (
    select
        runs.run_date,
        count(*)::integer as run_count,
        count(*) filter (where runs.status = 'succeeded')::integer as succeeded_run_count,
        count(*) filter (where runs.status = 'failed')::integer as failed_run_count,
        count(*) filter (where runs.status = 'died')::integer as died_run_count,
        coalesce(sum(table_runs.rows_read), 0)::bigint as rows_read,
        coalesce(sum(table_runs.rows_inserted), 0)::bigint as rows_inserted,
        coalesce(sum(table_runs.rows_updated), 0)::bigint as rows_updated,
        coalesce(sum(table_runs.rows_deleted), 0)::bigint as rows_deleted,
        coalesce(sum(table_runs.rows_rejected), 0)::bigint as rows_rejected,
        coalesce(sum(table_runs.retries), 0)::bigint as retry_count,
        coalesce(sum(table_runs.failed_tables), 0)::integer as table_failure_count,
        round(avg(runs.duration_seconds), 4) as average_duration_seconds,
        round(percentile_cont(0.95) within group (order by runs.duration_seconds)::numeric, 4) as p95_duration_seconds,
        round(max(runs.duration_seconds), 4) as longest_duration_seconds,
        max(runs.hours_since) filter (where runs.status = 'succeeded') as longest_lag_hours,
        coalesce(sum(rejected_rows.open_rejected_rows), 0)::bigint as open_rejected_rows
    from runs
    left join table_runs on runs.run_id = table_runs.run_id
    left join rejected_rows on runs.run_id = rejected_rows.run_id
    group by runs.run_date
)

select * from days
