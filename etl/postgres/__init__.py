"""Sessions, transactions, errors, COPY and SQL that are the same for the source and the target.

Nothing about tables of either side.
"""
