"""Tables with about as many columns as PostgreSQL allows: raw adds three, and dropped columns count."""

import pytest

from etl.commands.discover import discover
from etl.commands.verify import verify
from etl.model import RunOptions

MOST = 1597  # columns that a source table may have


def make_wide(replication, columns):
    """Make a table with this many columns, the first of which is the key, and one row."""
    more = ", ".join(f"c{number} int default 1" for number in range(1, columns))
    replication.on_source(f"create table wide (id int primary key, {more}); insert into wide (id) values (1)")


def test_the_widest_table_is_replicated_changed_and_compared(replication):
    make_wide(replication, MOST)
    replication.run_one("wide")
    replication.on_source(f"update wide set c{MOST - 1} = 2; insert into wide (id) values (2)")

    changed = replication.run_one("wide")
    replication.run("wide", options=RunOptions(full_refresh=True), load_range_blocks=1)
    (found,) = verify(replication.settings)

    assert (changed.rows_inserted, changed.rows_updated) == (1, 1)
    assert found.is_equal, found
    assert replication.on_target(f"select id, c{MOST - 1} from raw.wide order by id") == [(1, 2), (2, 1)]


@pytest.mark.parametrize("columns", [MOST + 1, 1600])
def test_a_table_that_is_too_wide_is_refused_before_its_load(replication, columns):
    make_wide(replication, columns)

    (result,) = replication.run("wide").tables
    (proposal,) = discover(replication.settings)

    assert "columns" in str(proposal.skipped)
    assert result.status == "failed"
    assert f"public.wide has {columns:,} columns, and raw tables can have {MOST:,} of them" in str(result.error)
    assert replication.on_target("select to_regclass('raw.wide')") == [(None,)]
    assert replication.on_target("select batches from etl.table_runs") == [(0,)]


def test_columns_dropped_from_the_source_do_not_count(replication):
    make_wide(replication, MOST + 1)
    replication.on_source("alter table wide drop column c5")

    replication.run_one("wide")

    assert replication.on_target("select count(*) from raw.wide") == [(1,)]


def test_raw_table_without_room_for_a_column_asks_for_a_reset(replication):
    """It keeps what the source has dropped."""
    make_wide(replication, MOST)
    replication.run_one("wide")
    replication.on_source("alter table wide drop column c5, add column late int default 7")

    (refused,) = replication.run("wide").tables
    (reset,) = replication.run("wide", options=RunOptions(full_refresh=True)).tables

    assert refused.status == "failed"
    assert 'raw.wide has no room for column "late": it has 1,600 columns' in str(refused.error)
    assert "reload it: `etl reset wide`" in str(refused.error)
    assert reset.status == "succeeded", reset.error
    assert replication.on_target("select late from raw.wide") == [(7,)]
