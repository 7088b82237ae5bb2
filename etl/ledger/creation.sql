create schema if not exists raw;
create schema if not exists etl;
CREATE TABLE etl.runs (
	run_id BIGINT GENERATED ALWAYS AS IDENTITY, 
	started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	ended_at TIMESTAMP WITH TIME ZONE, 
	status TEXT DEFAULT 'running' NOT NULL, 
	error TEXT, 
	shared_by TEXT, 
	CONSTRAINT runs_pkey PRIMARY KEY (run_id), 
	CONSTRAINT runs_status_check CHECK (status in ('running', 'succeeded', 'failed', 'died')), 
	CONSTRAINT runs_check CHECK ((ended_at is null) = (status = 'running'))
);
CREATE TABLE etl.loads (
	table_name TEXT NOT NULL, 
	filenodes TEXT NOT NULL, 
	signature TEXT NOT NULL, 
	system_identifier TEXT NOT NULL, 
	next_block BIGINT, 
	oldest_xid TEXT NOT NULL, 
	run_id BIGINT NOT NULL, 
	changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	database_name TEXT, 
	database_oid BIGINT, 
	schema_name TEXT, 
	timeline BIGINT, 
	CONSTRAINT loads_pkey PRIMARY KEY (table_name), 
	CONSTRAINT loads_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.net_scans (
	table_name TEXT NOT NULL, 
	first_block BIGINT NOT NULL, 
	end_block BIGINT, 
	scan_xid TEXT NOT NULL, 
	scan_signature TEXT NOT NULL, 
	scanned_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	rows_found BIGINT DEFAULT 0 NOT NULL, 
	found_at TIMESTAMP WITH TIME ZONE, 
	run_id BIGINT NOT NULL, 
	CONSTRAINT net_scans_pkey PRIMARY KEY (table_name, first_block), 
	CONSTRAINT net_scans_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.reconciliations (
	table_name TEXT NOT NULL, 
	rows_inserted BIGINT NOT NULL, 
	rows_updated BIGINT NOT NULL, 
	rows_deleted BIGINT NOT NULL, 
	filenodes TEXT NOT NULL, 
	stats_reset TEXT NOT NULL, 
	server_started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	listed_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	run_id BIGINT NOT NULL, 
	CONSTRAINT reconciliations_pkey PRIMARY KEY (table_name), 
	CONSTRAINT reconciliations_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.rejected_rows (
	table_name TEXT NOT NULL, 
	key TEXT NOT NULL, 
	row_text TEXT NOT NULL, 
	sqlstate TEXT NOT NULL, 
	message TEXT NOT NULL, 
	run_id BIGINT NOT NULL, 
	first_run_id BIGINT NOT NULL, 
	rejected_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	CONSTRAINT rejected_rows_pkey PRIMARY KEY (table_name, key), 
	CONSTRAINT rejected_rows_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id), 
	CONSTRAINT rejected_rows_first_run_id_fkey FOREIGN KEY(first_run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.schema_changes (
	change_id BIGINT GENERATED ALWAYS AS IDENTITY, 
	run_id BIGINT NOT NULL, 
	table_name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	column_name TEXT, 
	detail TEXT NOT NULL, 
	changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	CONSTRAINT schema_changes_pkey PRIMARY KEY (change_id), 
	CONSTRAINT schema_changes_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.table_runs (
	run_id BIGINT NOT NULL, 
	table_name TEXT NOT NULL, 
	started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	ended_at TIMESTAMP WITH TIME ZONE, 
	status TEXT DEFAULT 'running' NOT NULL, 
	snapshot TEXT, 
	watermark_before TEXT, 
	watermark_after TEXT, 
	fence_wait_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL, 
	batches BIGINT DEFAULT 0 NOT NULL, 
	rows_read BIGINT DEFAULT 0 NOT NULL, 
	rows_inserted BIGINT DEFAULT 0 NOT NULL, 
	rows_updated BIGINT DEFAULT 0 NOT NULL, 
	rows_rejected BIGINT DEFAULT 0 NOT NULL, 
	rows_deleted BIGINT DEFAULT 0 NOT NULL, 
	bytes_read BIGINT DEFAULT 0 NOT NULL, 
	retries BIGINT DEFAULT 0 NOT NULL, 
	error TEXT, 
	rows_unchanged BIGINT GENERATED ALWAYS AS (rows_read - rows_inserted - rows_updated - rows_rejected) STORED, 
	CONSTRAINT table_runs_pkey PRIMARY KEY (run_id, table_name), 
	CONSTRAINT table_runs_status_check CHECK (status in ('running', 'succeeded', 'failed', 'died')), 
	CONSTRAINT table_runs_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
CREATE TABLE etl.watermarks (
	table_name TEXT NOT NULL, 
	column_name TEXT, 
	watermark TEXT, 
	points JSONB DEFAULT '[]' NOT NULL, 
	system_identifier TEXT, 
	run_id BIGINT NOT NULL, 
	changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	as_of TIMESTAMP WITH TIME ZONE, 
	raw_types JSONB DEFAULT '{}' NOT NULL, 
	column_numbers JSONB DEFAULT '{}' NOT NULL, 
	next_xid TEXT, 
	database_name TEXT, 
	database_oid BIGINT, 
	schema_name TEXT, 
	timeline BIGINT, 
	refusal TEXT, 
	read_xid TEXT, 
	read_signature TEXT, 
	changes_counted BIGINT, 
	has_read BOOLEAN DEFAULT false NOT NULL, 
	clock_ahead DOUBLE PRECISION, 
	CONSTRAINT watermarks_pkey PRIMARY KEY (table_name), 
	CONSTRAINT watermarks_run_id_fkey FOREIGN KEY(run_id) REFERENCES etl.runs (run_id)
);
COMMENT ON TABLE etl.loads IS 'First loads in ranges that are not done yet: how far they have come.';
COMMENT ON TABLE etl.net_scans IS 'Slices of tables, and the last net scan of each: every row version that it could see is in raw.';
COMMENT ON TABLE etl.reconciliations IS 'What the source had counted of a table when its keys were last known to equal those of raw.';
COMMENT ON TABLE etl.rejected_rows IS 'Rows that the target refuses at present; each run tries them again.';
COMMENT ON TABLE etl.schema_changes IS 'What changed in the source''s tables, with the run that followed it.';
COMMENT ON TABLE etl.table_runs IS 'One row per table of a run; counts grow in the transactions of the batches.';
COMMENT ON TABLE etl.watermarks IS 'From where the next read of a table starts, inclusive.';
COMMENT ON COLUMN etl.runs.run_id IS 'Grows with every run.';
COMMENT ON COLUMN etl.runs.started_at IS 'When the run began, by the target''s clock.';
COMMENT ON COLUMN etl.runs.ended_at IS 'When it ended; NULL while it is running.';
COMMENT ON COLUMN etl.runs.status IS 'running, succeeded, failed, or died: the run vanished, and the next one marked it.';
COMMENT ON COLUMN etl.runs.error IS 'Why it failed or died.';
COMMENT ON COLUMN etl.runs.shared_by IS 'What several processes work in this run for; NULL: one process does.';
COMMENT ON COLUMN etl.loads.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.loads.filenodes IS 'The table''s files on the source; after TRUNCATE or a rewrite the load starts over.';
COMMENT ON COLUMN etl.loads.signature IS 'The columns and the key, as JSON; after a change of them the load starts over.';
COMMENT ON COLUMN etl.loads.system_identifier IS 'The identifier of the source cluster; on another one the load starts over.';
COMMENT ON COLUMN etl.loads.next_block IS 'The block of the source where the next range starts; NULL: all are read.';
COMMENT ON COLUMN etl.loads.oldest_xid IS 'Row versions written since the first snapshot have this xid8 or a later one.';
COMMENT ON COLUMN etl.loads.run_id IS 'The last run that stored the row.';
COMMENT ON COLUMN etl.loads.changed_at IS 'When it was stored.';
COMMENT ON COLUMN etl.loads.database_name IS 'The source''s database.';
COMMENT ON COLUMN etl.loads.database_oid IS 'Its oid; unlike the name, it stays when the database is renamed.';
COMMENT ON COLUMN etl.loads.schema_name IS 'The schema of the source.';
COMMENT ON COLUMN etl.loads.timeline IS 'The timeline of the source; it grows with a promotion or a recovery.';
COMMENT ON COLUMN etl.net_scans.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.net_scans.first_block IS 'The first block of the slice, in each partition.';
COMMENT ON COLUMN etl.net_scans.end_block IS 'The block before which the slice ends; NULL: it has no end.';
COMMENT ON COLUMN etl.net_scans.scan_xid IS 'The last scan: row versions that it could not see have this xid8 or a later one.';
COMMENT ON COLUMN etl.net_scans.scan_signature IS 'The last scan: the source, files and columns that were read, and how, as JSON.';
COMMENT ON COLUMN etl.net_scans.scanned_at IS 'When it began, by the source''s clock.';
COMMENT ON COLUMN etl.net_scans.rows_found IS 'Rows that scans of the slice found and the watermark column had not shown.';
COMMENT ON COLUMN etl.net_scans.found_at IS 'When a scan last found some, by the source''s clock.';
COMMENT ON COLUMN etl.net_scans.run_id IS 'The last run that scanned the slice.';
COMMENT ON COLUMN etl.reconciliations.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.reconciliations.rows_inserted IS 'Rows that the source''s statistics count as inserted, in all partitions.';
COMMENT ON COLUMN etl.reconciliations.rows_updated IS 'Rows that they count as updated.';
COMMENT ON COLUMN etl.reconciliations.rows_deleted IS 'Rows that they count as deleted.';
COMMENT ON COLUMN etl.reconciliations.filenodes IS 'The table''s files on the source; TRUNCATE and rewrites change them.';
COMMENT ON COLUMN etl.reconciliations.stats_reset IS 'When the source''s statistics were last reset, also by a crash.';
COMMENT ON COLUMN etl.reconciliations.server_started_at IS 'When the source''s server was started.';
COMMENT ON COLUMN etl.reconciliations.listed_at IS 'When the counts were read, by the source''s clock.';
COMMENT ON COLUMN etl.reconciliations.run_id IS 'The run that compared the keys.';
COMMENT ON COLUMN etl.rejected_rows.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.rejected_rows.key IS 'The values of the primary key, a JSON array of text.';
COMMENT ON COLUMN etl.rejected_rows.row_text IS 'The row in COPY text format; what is not ASCII is escaped.';
COMMENT ON COLUMN etl.rejected_rows.sqlstate IS 'The SQLSTATE of the error.';
COMMENT ON COLUMN etl.rejected_rows.message IS 'What the target answered; what is not ASCII is escaped.';
COMMENT ON COLUMN etl.rejected_rows.run_id IS 'The last run that tried the row.';
COMMENT ON COLUMN etl.rejected_rows.first_run_id IS 'The run that met it first.';
COMMENT ON COLUMN etl.rejected_rows.rejected_at IS 'When it was last tried.';
COMMENT ON COLUMN etl.schema_changes.change_id IS 'Grows with every change that is recorded.';
COMMENT ON COLUMN etl.schema_changes.run_id IS 'The run that followed the change.';
COMMENT ON COLUMN etl.schema_changes.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.schema_changes.kind IS 'Such as column_added, column_widened, table_loaded or table_missing.';
COMMENT ON COLUMN etl.schema_changes.column_name IS 'The column; NULL: the change is of the whole table.';
COMMENT ON COLUMN etl.schema_changes.detail IS 'What changed, for people.';
COMMENT ON COLUMN etl.schema_changes.changed_at IS 'When it was followed.';
COMMENT ON COLUMN etl.table_runs.run_id IS 'The run.';
COMMENT ON COLUMN etl.table_runs.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.table_runs.started_at IS 'When the run first began with the table.';
COMMENT ON COLUMN etl.table_runs.ended_at IS 'When it ended; NULL while it is running.';
COMMENT ON COLUMN etl.table_runs.status IS 'running, succeeded, failed, or died: the run vanished, and the next one marked it.';
COMMENT ON COLUMN etl.table_runs.snapshot IS 'The exported snapshot of the source that the last attempt read.';
COMMENT ON COLUMN etl.table_runs.watermark_before IS 'The watermark from which the first attempt read.';
COMMENT ON COLUMN etl.table_runs.watermark_after IS 'The watermark that the run stored; NULL unless it succeeded.';
COMMENT ON COLUMN etl.table_runs.fence_wait_seconds IS 'How long all attempts waited for open transactions of the source.';
COMMENT ON COLUMN etl.table_runs.batches IS 'Committed transactions with rows of the table.';
COMMENT ON COLUMN etl.table_runs.rows_read IS 'Rows that the source sent.';
COMMENT ON COLUMN etl.table_runs.rows_inserted IS 'Rows that raw did not have, or had as tombstones.';
COMMENT ON COLUMN etl.table_runs.rows_updated IS 'Rows that differed.';
COMMENT ON COLUMN etl.table_runs.rows_rejected IS 'Rows that the target refused.';
COMMENT ON COLUMN etl.table_runs.rows_deleted IS 'Rows that became tombstones.';
COMMENT ON COLUMN etl.table_runs.bytes_read IS 'Bytes of COPY that the source sent.';
COMMENT ON COLUMN etl.table_runs.retries IS 'How often the table was tried again after an error; error has the last.';
COMMENT ON COLUMN etl.table_runs.error IS 'The last error, also of a table that succeeded when it was tried again.';
COMMENT ON COLUMN etl.table_runs.rows_unchanged IS 'Rows that were read and equal those of raw.';
COMMENT ON COLUMN etl.watermarks.table_name IS 'The table of the source.';
COMMENT ON COLUMN etl.watermarks.column_name IS 'The watermark column; NULL: each run reads the row versions that are new.';
COMMENT ON COLUMN etl.watermarks.watermark IS 'NULL: nothing has settled yet, the next run reads the whole table.';
COMMENT ON COLUMN etl.watermarks.points IS 'Points taken, oldest first, that were not settled when the run ended.';
COMMENT ON COLUMN etl.watermarks.system_identifier IS 'The identifier of the source cluster.';
COMMENT ON COLUMN etl.watermarks.run_id IS 'The last run that stored the row.';
COMMENT ON COLUMN etl.watermarks.changed_at IS 'When it was stored.';
COMMENT ON COLUMN etl.watermarks.as_of IS 'The source''s clock, less the margin, when the watermark''s point was taken.';
COMMENT ON COLUMN etl.watermarks.raw_types IS 'The type in raw of each column of the source, as last replicated.';
COMMENT ON COLUMN etl.watermarks.column_numbers IS 'The attnum of each column of the source, as last replicated.';
COMMENT ON COLUMN etl.watermarks.next_xid IS 'How far the source''s transactions had come (xid8): an older source is refused.';
COMMENT ON COLUMN etl.watermarks.database_name IS 'The source''s database.';
COMMENT ON COLUMN etl.watermarks.database_oid IS 'Its oid; unlike the name, it stays when the database is renamed.';
COMMENT ON COLUMN etl.watermarks.schema_name IS 'The schema of the source.';
COMMENT ON COLUMN etl.watermarks.timeline IS 'The timeline of the source; it grows with a promotion or a recovery.';
COMMENT ON COLUMN etl.watermarks.refusal IS 'Why the table is refused until a person settles it; NULL: it is not.';
COMMENT ON COLUMN etl.watermarks.read_xid IS 'The last complete read, by watermark or whole: row versions that it could not see have this xid8 or a later one.';
COMMENT ON COLUMN etl.watermarks.read_signature IS 'The last complete read, by watermark or whole: the source, files and columns that were read, and how, as JSON.';
COMMENT ON COLUMN etl.watermarks.changes_counted IS 'How many rows the source had counted as inserted or updated, as far as what runs read explains it.';
COMMENT ON COLUMN etl.watermarks.has_read IS 'Whether the last run read rows of the table, by its watermark.';
COMMENT ON COLUMN etl.watermarks.clock_ahead IS 'By how many seconds the source''s clock was ahead of the target''s.';
COMMENT ON TABLE etl.runs IS 'Ledger version 6. One row per run; runs are serial, ids are allotted under the run lock.';
