"""The commands that a person or a schedule runs, and the work that they share.

`etl.cli` and `etl.display` print their results.
"""
