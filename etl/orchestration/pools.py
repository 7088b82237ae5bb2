"""The pool that bounds how many tables are read at once, where each has a task of its own.

The DAG names it and `make airflow` makes it, so this module imports nothing of Airflow.
"""

from __future__ import annotations

SOURCE_POOL = "tidemark_source"
SOURCE_POOL_SLOTS = 4  # connections to the source
CONNECTIONS_OF_A_TABLE = 2  # one holds the snapshot, one reads; a table's task takes as many slots
