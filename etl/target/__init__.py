"""Writing raw tables: batches, new tables, changed columns and the views on them.

Nothing here reads the source.
"""
