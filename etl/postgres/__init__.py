"""Sessions, transactions, errors, COPY and SQL that are the same for the source and the target.

Nothing here is specific to one side.
"""
