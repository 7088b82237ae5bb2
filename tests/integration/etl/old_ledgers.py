"""Ledgers as every release left them, and what is compared before and after one is upgraded."""

from pathlib import Path

from etl.ledger import versions

FOLDER = Path(__file__).with_name("ledgers")
# All files that made ledgers, oldest first; four of them state version 3.
SHAPES = ("1", "2", "3a", "3b", "3c", "3d", "4", "5")
# What a release leaves, and the first shape that can hold it.
ROWS = (
    (
        "1",
        """
        insert into etl.runs (status, ended_at, error) values
            ('succeeded', '2026-01-02 03:04:05+00', null), ('failed', '2026-01-03 03:04:05+00', 'failed: items'),
            ('died', '2026-01-04 03:04:05+00', 'the run vanished'), ('running', null, null);
        insert into etl.table_runs (
            run_id, table_name, status, ended_at, snapshot, watermark_before, watermark_after, fence_wait_seconds,
            batches, rows_read, rows_inserted, rows_updated, rows_deleted, bytes_read, retries, error
        ) values
            (1, 'items', 'succeeded', '2026-01-02 03:04:05+00', '00000003-0000001B-1', null, '2026-01-02', 0.25,
                1, 30, 20, 4, 2, 831, 1, null),
            (2, 'it''s %s ü', 'failed', '2026-01-03 03:04:05+00', null, '2026-01-02', null, 0,
                0, 0, 0, 0, 0, 0, 0, 'a \\ b'),
            (4, 'items', 'running', null, '00000003-0000001C-1', '2026-01-02', null, 0, 1, 7, 7, 0, 0, 99, 0, null);
        insert into etl.watermarks (table_name, column_name, watermark, points, system_identifier, run_id)
        values ('items', 'updated_at', '2026-01-02', '[{
            "value": "2026-01-02", "as_of": "2026-01-02T03:04:05+00:00", "transactions": [],
            "server_started_at": "2026-01-01T00:00:00+00:00"
        }]', '7312', 1),
            ('whole', null, null, '[]', null, 2)
        """,
    ),
    (
        "2",
        """
        update etl.table_runs set rows_rejected = 3 where run_id = 1;
        update etl.watermarks set as_of = '2026-01-02 03:04:05+00', raw_types = '{"item_id": "integer"}';
        insert into etl.loads (table_name, filenodes, signature, system_identifier, next_block, oldest_xid, run_id)
        values ('large', '16384:16384', '{}', '7312', 131072, '745', 1);
        insert into etl.rejected_rows (table_name, key, row_text, sqlstate, message, run_id, first_run_id)
        values ('items', '["31"]', E'31\\t\\\\N', '23514', 'check', 2, 1)
        """,
    ),
    (
        "3a",
        "insert into etl.reconciliations values ('items', 20, 4, 2, '16384:16384', '', '2026-01-01', '2026-01-02', 1)",
    ),
    (
        "3b",
        """
        update etl.watermarks set column_numbers = '{"item_id": 1}';
        insert into etl.schema_changes (run_id, table_name, kind, detail) values (1, 'items', 'table_loaded', 'loaded')
        """,
    ),
    ("3c", "update etl.watermarks set next_xid = '745'"),
    ("4", "insert into etl.runs (shared_by) values ('a DAG run')"),
)
TABLES = ("runs", "table_runs", "watermarks", "loads", "rejected_rows", "reconciliations", "schema_changes")
# Everything about the tables but the order of their columns, which an upgrade cannot give.
DEFINITIONS = """
    select 'column' as what, a.attrelid::regclass::text as relation, a.attname::text as name,
        format_type(a.atttypid, a.atttypmod) as definition, a.attnotnull::text as detail, a.attidentity::text,
        a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
    from pg_attribute as a
    join pg_class as c on c.oid = a.attrelid and c.relkind = 'r' and c.relnamespace = 'etl'::regnamespace
    left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attnum > 0 and not a.attisdropped
    union all
    select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), null, null, null, null, null
    from pg_constraint where connamespace = 'etl'::regnamespace and contype <> 'n'
    union all
    select 'index', indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid), null, null, null,
        null, null
    from pg_index join pg_class on pg_class.oid = indrelid and relkind = 'r' and relnamespace = 'etl'::regnamespace
    union all
    select 'table', c.oid::regclass::text, null, obj_description(c.oid, 'pg_class'), null, null, null, null, null
    from pg_class as c where c.relkind = 'r' and c.relnamespace = 'etl'::regnamespace
    order by 1, 2, 3, 4
"""
# The versions of all catalog rows about the ledger: any DDL, also one that changes nothing, makes new ones.
CATALOG_VERSIONS = """
    select 'class', oid, 0, xmin::text from pg_class where relnamespace = 'etl'::regnamespace
    union all
    select 'attribute', a.attrelid, a.attnum, a.xmin::text from pg_attribute as a
    join pg_class as c on c.oid = a.attrelid and c.relnamespace = 'etl'::regnamespace
    union all
    select 'description', d.objoid, d.objsubid, d.xmin::text from pg_description as d
    join pg_class as c on c.oid = d.objoid and d.classoid = 'pg_class'::regclass
        and c.relnamespace = 'etl'::regnamespace
    union all
    select 'constraint', oid, 0, xmin::text from pg_constraint where connamespace = 'etl'::regnamespace
    order by 1, 2, 3
"""
STATED = "select obj_description('etl.runs'::regclass)"


def sql_of(shape):
    return (FOLDER / f"{shape}.sql").read_text(encoding="utf-8")


def put_ledger(replication, shape):
    """Make a ledger as a release left it, with rows in every table."""
    replication.on_target(sql_of(shape))
    add_rows(replication, shape)


def add_rows(replication, shape):
    for first, statements in ROWS:
        if SHAPES.index(first) <= SHAPES.index(shape):
            replication.on_target(statements)


def contents(replication):
    """Return all rows of the ledger, by table, as documents."""
    return {
        name: [row for (row,) in replication.on_target(f"select to_jsonb(t) from etl.{name} as t order by t::text")]
        for name in TABLES
        if replication.on_target("select to_regclass(%s) is not null", f"etl.{name}") == [(True,)]
    }


def state(replication):
    """Return what must be the same after an attempt that failed."""
    return replication.on_target(DEFINITIONS), contents(replication), replication.on_target(CATALOG_VERSIONS)


def keeps(before, after):
    """Tell whether rows have all that they had, and perhaps more columns."""
    return all(
        len(rows) == len(after[name])
        and all(any(row.items() <= later.items() for later in after[name]) for row in rows)
        for name, rows in before.items()
    )


def upgrade(replication):
    """Bring the ledger up as a run does, and leave runs as they are."""
    versions.upgrade(replication.target, 1)


def state_version(replication, version):
    replication.on_target(f"comment on table etl.runs is 'Ledger version {version}. One row per run.'")
