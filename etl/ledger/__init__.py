"""Schema `etl` of the target: runs, progress, rejected rows and locks.

Nothing here touches the rows of raw tables.
"""
