"""The making of a raw table: whole in one transaction, or in ranges out of sight, until it takes its place.

The new table may replace one of the same name, in one transaction: readers see the old rows until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError
from etl.ledger import runs
from etl.ledger.progress import delete_load, forget_table, read_load, save_load, save_progress
from etl.model import META_COLUMNS, Counts, LoadState, Progress
from etl.policy.deletes import check_fraction
from etl.policy.schema_changes import is_widened
from etl.postgres.copy_pipe import CopyOut, copy_in, stream
from etl.postgres.sql import read_sql
from etl.target import raw_tables, statements
from etl.target.batch import copy_rows
from etl.target.views import check_views, detached_views, give_extras, read_extras
from etl.target.writer import Writer

LIST_ATTACHED = read_sql(__package__, "list_attached")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What putting a loaded table in its place did beside it."""

    counts: Counts = field(default_factory=Counts)  # rows that became tombstones
    remarks: tuple[str, ...] = ()  # that a person should know


class RawLoad:
    """The raw table that a load of one table makes, with the writer's session."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.table = writer.table

    def make_whole(self, copy_out: CopyOut, progress: Progress) -> Counts:
        """Create the raw table with its rows, key and metadata, and store the progress, in one transaction."""
        table, into = self.table, statements.raw_table(self.table.name)
        with self._writer.transaction() as cursor:
            cursor.execute(statements.create_raw(table, into))
            rows, size = copy_rows(cursor, table, copy_out, into=into, freeze=True)
            cursor.execute(statements.complete_raw(table, into, self._writer.run_id))
            cursor.execute(statements.analyze_raw(table))
            counts = Counts(read=rows, inserted=rows, bytes=size)
            forget_table(cursor, table.name)
            runs.record_change(cursor, self._writer.run_id, table.name, "table_loaded", "loaded")
            runs.add_batch(cursor, self._writer.run_id, table.name, counts)
            save_progress(cursor, self._writer.run_id, table, progress)
        return counts

    def start_over(self, discarded: Counts, *, is_replacement: bool) -> None:
        """Give up a load for one in batches: into the raw table that it was to replace, or else into an empty one.

        `discarded`, what this run had loaded of the table, is taken from its ledger.
        """
        into = statements.raw_table(self.table.name)
        with self._writer.transaction() as cursor:
            cursor.execute(statements.drop_loading(self.table))
            runs.add_batch(cursor, self._writer.run_id, self.table.name, discarded)
            if is_replacement:
                delete_load(cursor, self.table.name)
            else:
                forget_table(cursor, self.table.name)
                runs.record_change(cursor, self._writer.run_id, self.table.name, "table_loaded", "loaded")
                cursor.execute(statements.create_raw(self.table, into))
                cursor.execute(statements.complete_raw(self.table, into, self._writer.run_id))

    def read_state(self) -> LoadState | None:
        """Return how far a first load in ranges has come; None when there is none."""
        with self._writer.session() as cursor:
            return read_load(cursor, self.table.name)

    def discard(self) -> None:
        """Forget a first load in ranges."""
        with self._writer.transaction() as cursor:
            cursor.execute(statements.drop_loading(self.table))
            delete_load(cursor, self.table.name)

    def add_range(self, copy_out: CopyOut, load: LoadState, *, is_first: bool) -> Counts:
        """Add the rows of a range to the table being loaded, and store how far the load has come with it."""
        table, into = self.table, statements.loading_table(self.table)
        with self._writer.transaction() as cursor:
            if is_first:
                cursor.execute(statements.drop_loading(table))
                cursor.execute(statements.create_raw(table, into))
            rows, size = copy_rows(cursor, table, copy_out, into=into, freeze=is_first)
            counts = Counts(read=rows, inserted=rows, bytes=size)
            runs.add_batch(cursor, self._writer.run_id, table.name, counts)
            save_load(cursor, self._writer.run_id, table.name, load)
        return counts

    def renew(self, copy_out_kept_keys: CopyOut, copy_out_written: CopyOut, load: LoadState) -> Counts:
        """Bring a table whose ranges were read at several snapshots to the last of them.

        `copy_out_kept_keys` gives the keys of the rows that are there as they were, `copy_out_written` the rows
        written since: what is loaded and has no such key was changed, moved or deleted, and goes.
        """
        table, into = self.table, statements.loading_table(self.table)
        with self._writer.transaction() as cursor:
            cursor.execute(statements.create_keys(table))
            with stream(copy_out_kept_keys) as keys:
                copy_in(cursor, statements.copy_in_keys(table), keys)
            cursor.execute(statements.analyze_keys())
            cursor.execute(statements.drop_other_keys(table))
            dropped = cursor.rowcount
            rows, size = copy_rows(cursor, table, copy_out_written, into=into, freeze=False)
            counts = Counts(read=rows, inserted=rows - dropped, bytes=size)
            runs.add_batch(cursor, self._writer.run_id, table.name, counts)
            save_load(cursor, self._writer.run_id, table.name, load)
        return counts

    def check_replacement(self) -> list[str]:
        """Raise TableError when the raw table cannot be replaced by a new one; return what to say of what it lacks."""
        table, raw = self.table, statements.raw_table(self.table.name)
        columns = [*(column.name for column in table.columns), *META_COLUMNS]
        with self._writer.session() as cursor:
            check_views(cursor, raw, f"raw.{table.name}", columns)
            cursor.execute(LIST_ATTACHED, {"name": table.name, "columns": columns})
            attached = [(kind, f"{kind} {name}") for kind, name in cursor]
        essential = [text for kind, text in attached if kind in ("row-level security", "foreign key of")]
        if essential:
            raise TableError(
                f"raw.{table.name} is to be loaded anew, and would lose {', '.join(essential)}: drop that, run again, "
                "then make it"
            )
        lost = ", ".join(text for _, text in attached)
        return [f"raw.{table.name} is made anew, without what somebody added to it: {lost}"] if lost else []

    def publish(self, progress: Progress, *, allow_deletes: bool) -> Publication:
        """Give a table loaded in ranges its key, metadata and name, and store the progress.

        A raw table of that name is replaced in the same transaction: its rows that the new one lacks become
        tombstones there, its views and grants stay. Raises TableError when more than `max_delete_fraction` of its
        rows would, unless that is allowed.
        """
        table, published = self.table, Publication()
        raw, loading = statements.raw_table(table.name), statements.loading_table(table)
        with self._writer.transaction() as cursor:
            types = raw_tables.read_column_types(cursor, table.name)
            if types:
                cursor.execute(statements.complete_raw(table, loading, self._writer.run_id))
                published = self._carry_tombstones(cursor, types, allow_deletes=allow_deletes)
                extras = read_extras(cursor, raw)
                with detached_views(cursor, raw, f"raw.{table.name}"):
                    cursor.execute(statements.drop_raw(table))
                    cursor.execute(statements.publish_raw(table))
                    cursor.execute(statements.rename_key(table))
                    give_extras(cursor, raw, extras, [column.name for column in table.columns])
            else:
                cursor.execute(statements.publish_raw(table))
                cursor.execute(statements.complete_raw(table, raw, self._writer.run_id))
            cursor.execute(statements.analyze_raw(table))
            forget_table(cursor, table.name)
            runs.record_change(
                cursor, self._writer.run_id, table.name, "table_loaded", "loaded anew" if types else "loaded"
            )
            runs.add_batch(cursor, self._writer.run_id, table.name, published.counts)
            save_progress(cursor, self._writer.run_id, table, progress)
        return published

    def _carry_tombstones(self, cursor: Cursor, types: Mapping[str, str], *, allow_deletes: bool) -> Publication:
        """Copy into the table being loaded the tombstones of the raw table, and as such its rows that are gone.

        Where the source's deletes are not followed, rows that are gone stay as they are.
        """
        table = self.table
        is_followed = table.config.deletes == "reconcile"
        kept = [
            column.name
            for column in table.columns
            if (known := types.get(column.name)) and (known == column.raw_type or is_widened(known, column.raw_type))
        ]
        remarks: tuple[str, ...] = ()
        if set(table.key) <= set(kept) and set(META_COLUMNS) <= set(types):
            cursor.execute(statements.carry_rows(table, kept, self._writer.run_id, as_tombstones=is_followed))
            gone, live = cursor.fetchone() or (0, 0)
        else:
            remarks = (f"the key of raw.{table.name} was another: deleted rows leave no tombstones",)
            cursor.execute(statements.count_loaded(table, has_tombstones="_etl_deleted_at" in types))
            loaded, live = cursor.fetchone() or (0, 0)
            gone = max(live - loaded, 0)
        if is_followed and not allow_deletes:
            check_fraction(table, gone, live, "reset")
        return Publication(counts=Counts(deleted=gone if is_followed else 0), remarks=remarks)
