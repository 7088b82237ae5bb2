"""One table at one snapshot: the first load, changes, deletes.

Begin at `table`; which tables and when is decided in `etl.commands`.
"""
