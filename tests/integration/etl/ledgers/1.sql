-- What the target remembers between runs. Applied at the start of every run; each statement may be repeated.
create schema if not exists raw;
create schema if not exists etl;

create table if not exists etl.runs (
    run_id bigint generated always as identity primary key,
    started_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    status text not null default 'running' check (status in ('running', 'succeeded', 'failed', 'died')),
    error text,
    check ((ended_at is null) = (status = 'running'))
);
comment on table etl.runs is 'One row per run. Runs are serial: ids are allotted under the run lock.';
comment on column etl.runs.status is 'died: the run vanished; the next one marked it.';

create table if not exists etl.table_runs (
    run_id bigint not null references etl.runs,
    table_name text not null,
    started_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    status text not null default 'running' check (status in ('running', 'succeeded', 'failed', 'died')),
    snapshot text,
    watermark_before text,
    watermark_after text,
    fence_wait_seconds double precision not null default 0,
    batches bigint not null default 0,
    rows_read bigint not null default 0,
    rows_inserted bigint not null default 0,
    rows_updated bigint not null default 0,
    rows_unchanged bigint generated always as (rows_read - rows_inserted - rows_updated) stored,
    rows_deleted bigint not null default 0,
    bytes_read bigint not null default 0,
    retries bigint not null default 0,
    error text,
    primary key (run_id, table_name)
);
comment on table etl.table_runs is 'One row per table of a run; counts grow in the transactions of the batches.';

create table if not exists etl.watermarks (
    table_name text primary key,
    column_name text,
    watermark text,
    points jsonb not null default '[]',
    system_identifier text,
    run_id bigint not null references etl.runs,
    changed_at timestamptz not null default clock_timestamp()
);
comment on table etl.watermarks is 'From where the next read of a table starts, inclusive.';
comment on column etl.watermarks.watermark is 'NULL: nothing has settled yet, the next run reads the whole table.';
comment on column etl.watermarks.points is 'Points taken, oldest first, that were not settled when the run ended.';
