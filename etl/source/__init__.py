"""Reading the source: its catalog, the points of the fence, one snapshot, and the rows of tables.

Nothing here writes.
"""
