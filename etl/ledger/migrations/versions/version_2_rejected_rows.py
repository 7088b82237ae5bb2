"""Version 2: rows that the target refuses, and first loads in ranges of blocks.

Not kept: an index, a check or statistics of others on `etl.table_runs.rows_unchanged`, which is computed in another
way. A view on that column makes the migration fail, and nothing is changed.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Text, text
from sqlalchemy.dialects.postgresql import JSONB

revision = "2"
down_revision = None

# Before version 17, Postgres cannot change the expression of a column. The grants on the column are given again.
REPLACE_ROWS_UNCHANGED = """
do $migration$
declare
    grants text[] := array(
        select format(
            'grant %s (rows_unchanged) on etl.table_runs to %s%s', g.privilege_type,
            case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
            case when g.is_grantable then ' with grant option' else '' end
        )
        from pg_catalog.pg_attribute as a
        cross join pg_catalog.aclexplode(a.attacl) as g
        where a.attrelid = 'etl.table_runs'::regclass and a.attname = 'rows_unchanged'
    );
    lost text;
begin
    alter table etl.table_runs drop column if exists rows_unchanged;
    alter table etl.table_runs add column rows_unchanged bigint
        generated always as (rows_read - rows_inserted - rows_updated - rows_rejected) stored;
    foreach lost in array grants loop execute lost; end loop;
end
$migration$
"""


def upgrade() -> None:
    """Add what version 2 has and version 1 has not."""
    rejected = Column("rows_rejected", BigInteger, nullable=False, server_default=text("0"))
    op.add_column("table_runs", rejected, schema="etl", if_not_exists=True)
    op.execute(REPLACE_ROWS_UNCHANGED)
    as_of = Column("as_of", DateTime(timezone=True))
    op.add_column("watermarks", as_of, schema="etl", if_not_exists=True)
    raw_types = Column("raw_types", JSONB, nullable=False, server_default=text("'{}'"))
    op.add_column("watermarks", raw_types, schema="etl", if_not_exists=True)
    op.create_table(
        "loads",
        Column("table_name", Text, primary_key=True),
        Column("filenodes", Text, nullable=False),
        Column("signature", Text, nullable=False),
        Column("system_identifier", Text, nullable=False),
        Column("next_block", BigInteger),
        Column("oldest_xid", Text, nullable=False),
        Column("run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        schema="etl",
        if_not_exists=True,
    )
    op.create_table(
        "rejected_rows",
        Column("table_name", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("row_text", Text, nullable=False),
        Column("sqlstate", Text, nullable=False),
        Column("message", Text, nullable=False),
        Column("run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        Column("first_run_id", BigInteger, ForeignKey("etl.runs.run_id"), nullable=False),
        Column("rejected_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        schema="etl",
        if_not_exists=True,
    )
