"""Creates a raw table: in one transaction, or in ranges in schema `etl` until it is complete.

The new table may replace one of the same name, in one transaction: readers see the old rows until then.
Begin at `RawLoad`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError, TargetChangedError
from etl.ledger import runs
from etl.ledger.progress import (
    delete_counters,
    delete_load,
    forget_table,
    read_load,
    save_load,
    save_partial_progress,
    save_progress,
)
from etl.model import META_COLUMNS, Counts, LoadState, Progress
from etl.policy.deletes import check_fraction
from etl.policy.schema_changes import is_widened
from etl.postgres.copy_pipe import CopyOut, copy_in, stream
from etl.postgres.sql import read_sql
from etl.target import raw_tables, statements
from etl.target.batch import copy_rows
from etl.target.own_names import has_loading_table, loading_table, make_room, move_to_raw, name_index
from etl.target.views import check_views, detached_views, give_extras, read_extras
from etl.target.writer import Writer

LIST_ATTACHED = read_sql(__package__, "list_attached")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The result of giving a loaded table its final name."""

    counts: Counts = field(default_factory=Counts)  # rows that became tombstones
    remarks: tuple[str, ...] = ()  # notices for the user


class RawLoad:
    """The load of one table into a new raw table, in the writer's session."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.table = writer.table

    def make_whole(self, copy_out: CopyOut, progress: Progress) -> Counts:
        """Create the raw table with its rows, key and metadata, and store the progress, in one transaction."""
        table, into = self.table, statements.raw_table(self.table.name)
        with self._writer.transaction() as cursor:
            make_room(cursor, table.name)
            cursor.execute(statements.create_raw(table, into))
            rows, size = copy_rows(cursor, table, copy_out, into=into, freeze=True)
            self._complete(cursor, into)
            cursor.execute(statements.analyze_raw(table))
            counts = Counts(read=rows, inserted=rows, bytes=size)
            forget_table(cursor, table.name)
            runs.record_change(cursor, self._writer.run_id, table.name, "table_loaded", "loaded")
            runs.add_batch(cursor, self._writer.run_id, table.name, counts)
            save_progress(cursor, self._writer.run_id, table, progress)
        return counts

    def start_over(self, discarded: Counts, begun: Progress, *, is_replacement: bool) -> None:
        """Drop what was loaded, so that batches can fill the table that was to be replaced, or else a new empty one.

        `discarded`, the negated counts of what this run had loaded, is added to its ledger. `begun` names the source
        from now on: if the run fails between two batches, no other source goes on.
        """
        into = statements.raw_table(self.table.name)
        with self._writer.transaction() as cursor:
            cursor.execute(statements.drop_loading(self.table))
            runs.add_batch(cursor, self._writer.run_id, self.table.name, discarded)
            if is_replacement:
                delete_load(cursor, self.table.name)
                delete_counters(cursor, self.table.name)  # so the next run compares the keys
            else:
                forget_table(cursor, self.table.name)
                runs.record_change(cursor, self._writer.run_id, self.table.name, "table_loaded", "loaded")
                make_room(cursor, self.table.name)
                cursor.execute(statements.create_raw(self.table, into))
                self._complete(cursor, into)
            save_partial_progress(cursor, self._writer.run_id, self.table, begun)

    def read_state(self) -> LoadState | None:
        """Return how far a load in ranges has come; None if there is none, or its table is lost."""
        with self._writer.transaction() as cursor:
            load = read_load(cursor, self.table.name)
            if load is None or has_loading_table(cursor, self.table.name):
                return load
            delete_load(cursor, self.table.name)
        return None

    def discard(self) -> None:
        """Drop the table and the stored state of a load in ranges."""
        with self._writer.transaction() as cursor:
            if has_loading_table(cursor, self.table.name):
                cursor.execute(statements.drop_loading(self.table))
            delete_load(cursor, self.table.name)

    def add_range(self, copy_out: CopyOut, load: LoadState, *, is_first: bool) -> Counts:
        """Add the rows of a range to the table being loaded, and store the state of the load, in one transaction."""
        table, into = self.table, loading_table(self.table.name)
        with self._loading_transaction(is_there=not is_first) as cursor:
            if is_first:
                cursor.execute(statements.drop_loading(table))
                cursor.execute(statements.create_raw(table, into))
            rows, size = copy_rows(cursor, table, copy_out, into=into, freeze=is_first)
            counts = Counts(read=rows, inserted=rows, bytes=size)
            runs.add_batch(cursor, self._writer.run_id, table.name, counts)
            save_load(cursor, self._writer.run_id, table.name, load)
        return counts

    def renew(self, copy_out_kept_keys: CopyOut, copy_out_written: CopyOut, load: LoadState) -> Counts:
        """Bring a table whose ranges were read at several snapshots up to the last snapshot.

        `copy_out_kept_keys` writes the keys of the rows that were not written since the first of these snapshots, and
        `copy_out_written` the rows that were. A loaded row without a kept key was changed, moved or deleted on the
        source: it is deleted before the written rows are added.
        """
        table, into = self.table, loading_table(self.table.name)
        with self._loading_transaction() as cursor:
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
        """Return notices of what a new raw table will lack; raises TableError when it must not replace the old one."""
        table, raw = self.table, statements.raw_table(self.table.name)
        columns = [*(column.name for column in table.columns), *META_COLUMNS]
        with self._writer.session() as cursor:
            check_views(cursor, raw, f"raw.{table.name}", columns)
            cursor.execute(LIST_ATTACHED, {"name": table.name, "columns": columns})
            attached = [(kind, f"{kind} {name}") for kind, name in cursor]
        essential = [text for kind, text in attached if kind in ("row-level security", "foreign key of")]
        if essential:
            raise TableError(
                f"reloading raw.{table.name} would lose {', '.join(essential)}: drop that, run again, then recreate it"
            )
        lost = ", ".join(text for _, text in attached)
        return [f"raw.{table.name} is recreated without what was added to it: {lost}"] if lost else []

    def publish(self, progress: Progress, *, allow_deletes: bool) -> Publication:
        """Give a table loaded in ranges its key, metadata and name, and store the progress, in one transaction.

        An existing raw table is replaced: its rows that the new table lacks become tombstones there, and its views and
        grants are kept. Raises TableError when more than `max_delete_fraction` of its rows would become tombstones,
        unless `allow_deletes`.
        """
        table, published = self.table, Publication()
        raw, loading = statements.raw_table(table.name), loading_table(table.name)
        with self._loading_transaction() as cursor:
            types = raw_tables.read_column_types(cursor, table.name)
            self._complete(cursor, loading)
            if types:
                published = self._carry_tombstones(cursor, types, allow_deletes=allow_deletes)
            else:
                make_room(cursor, table.name)
                cursor.execute(statements.create_empty(table))
            extras = read_extras(cursor, raw)
            with detached_views(cursor, raw, f"raw.{table.name}"):
                cursor.execute(statements.drop_raw(table))
                cursor.execute(move_to_raw(table.name))
                give_extras(cursor, raw, extras, [column.name for column in table.columns])
            cursor.execute(statements.analyze_raw(table))
            forget_table(cursor, table.name)
            runs.record_change(
                cursor, self._writer.run_id, table.name, "table_loaded", "reloaded" if types else "loaded"
            )
            runs.add_batch(cursor, self._writer.run_id, table.name, published.counts)
            save_progress(cursor, self._writer.run_id, table, progress)
        return published

    @contextmanager
    def _loading_transaction(self, *, is_there: bool = True) -> Iterator[Cursor]:
        """Open a transaction; raise TargetChangedError when the table being loaded should be there, and is not."""
        with self._writer.transaction() as cursor:
            if is_there and not has_loading_table(cursor, self.table.name):
                raise TargetChangedError(
                    f"the table that raw.{self.table.name} is loaded into was dropped or renamed by another session "
                    "meanwhile: run again, which starts the load over"
                )
            yield cursor

    def _complete(self, cursor: Cursor, into: sql.Identifier) -> None:
        """Add metadata, key and index to a table that was just filled."""
        name = self.table.name
        key_name, index_name = name_index(cursor, "key", name), name_index(cursor, "run", name)
        cursor.execute(
            statements.complete_raw(self.table, into, self._writer.run_id, key_name=key_name, index_name=index_name)
        )

    def _carry_tombstones(self, cursor: Cursor, types: Mapping[str, str], *, allow_deletes: bool) -> Publication:
        """Copy the raw table's tombstones, and its rows that the source has deleted, into the table being loaded.

        Deleted rows become tombstones; with `deletes: none`, they are copied as they are.
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
            deleted, live = cursor.fetchone() or (0, 0)
        else:
            remarks = (f"the key of raw.{table.name} has changed: deleted rows leave no tombstones",)
            cursor.execute(statements.count_loaded(table, has_tombstones="_etl_deleted_at" in types))
            loaded, live = cursor.fetchone() or (0, 0)
            deleted = max(live - loaded, 0)
        if is_followed and not allow_deletes:
            check_fraction(table, deleted, live, "reset")
        return Publication(counts=Counts(deleted=deleted if is_followed else 0), remarks=remarks)
