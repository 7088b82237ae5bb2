"""Replicates one table at one snapshot: the first load, changes, deletes.

Begin at `table`. `etl.commands` decides which tables are replicated, and when.
"""
