-- What the target remembers between runs, in version 3. Each statement may be repeated on an older version.
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
    rows_rejected bigint not null default 0,
    rows_deleted bigint not null default 0,
    bytes_read bigint not null default 0,
    retries bigint not null default 0,
    error text,
    primary key (run_id, table_name)
);
alter table etl.table_runs add column if not exists rows_rejected bigint not null default 0;
alter table etl.table_runs drop column if exists rows_unchanged;
alter table etl.table_runs add column rows_unchanged bigint
    generated always as (rows_read - rows_inserted - rows_updated - rows_rejected) stored;
comment on table etl.table_runs is 'One row per table of a run; counts grow in the transactions of the batches.';
comment on column etl.table_runs.retries is 'How often the table was tried again after an error; error has the last.';

create table if not exists etl.watermarks (
    table_name text primary key,
    column_name text,
    watermark text,
    points jsonb not null default '[]',
    system_identifier text,
    run_id bigint not null references etl.runs,
    changed_at timestamptz not null default clock_timestamp()
);
alter table etl.watermarks add column if not exists as_of timestamptz;
alter table etl.watermarks add column if not exists raw_types jsonb not null default '{}';
comment on table etl.watermarks is 'From where the next read of a table starts, inclusive.';
comment on column etl.watermarks.watermark is 'NULL: nothing has settled yet, the next run reads the whole table.';
comment on column etl.watermarks.points is 'Points taken, oldest first, that were not settled when the run ended.';
comment on column etl.watermarks.as_of is 'The source''s clock, less the margin, when the watermark''s point was taken.';
comment on column etl.watermarks.raw_types is 'The type in raw of each column of the source, as last replicated.';

create table if not exists etl.loads (
    table_name text primary key,
    filenodes text not null,
    signature text not null,
    system_identifier text not null,
    next_block bigint,
    oldest_xid text not null,
    run_id bigint not null references etl.runs,
    changed_at timestamptz not null default clock_timestamp()
);
comment on table etl.loads is 'First loads in ranges that are not done yet: how far they have come.';
comment on column etl.loads.next_block is 'From which block of the source the next range starts; NULL: all are read.';
comment on column etl.loads.oldest_xid is 'Row versions written since the last snapshot have this xid8 or a later one.';

create table if not exists etl.rejected_rows (
    table_name text not null,
    key text not null,
    row_text text not null,
    sqlstate text not null,
    message text not null,
    run_id bigint not null references etl.runs,
    first_run_id bigint not null references etl.runs,
    rejected_at timestamptz not null default clock_timestamp(),
    primary key (table_name, key)
);
comment on table etl.rejected_rows is 'Rows that the target refuses at present; each run tries them again.';
comment on column etl.rejected_rows.key is 'The values of the primary key, a JSON array of text.';
comment on column etl.rejected_rows.row_text is 'The row in COPY text format; what is not ASCII is escaped.';
comment on column etl.rejected_rows.run_id is 'The last run that tried the row.';

create table if not exists etl.reconciliations (
    table_name text primary key,
    rows_inserted bigint not null,
    rows_updated bigint not null,
    rows_deleted bigint not null,
    filenodes text not null,
    stats_reset text not null,
    server_started_at timestamptz not null,
    listed_at timestamptz not null,
    run_id bigint not null references etl.runs
);
comment on table etl.reconciliations is
    'What the source counted of a table before the snapshot at which its keys were last known to equal those of raw.';

-- The last statement: what it says is how a later run knows that all of the above is there.
comment on table etl.runs is 'Ledger version 3. One row per run; runs are serial, ids are allotted under the run lock.';
