"""The Alembic revisions of the ledger. Each has the number of the version that it leads to, and changes structure only.

What it adds may be there already, because releases before version 5 repeated all of their DDL. No revision goes back:
docs/operations.md says what does.
"""
