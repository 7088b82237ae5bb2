"""The pool that limits how many tables are read at the same time when each table has its own task.

The DAG names it and `make airflow` creates it, so this module does not import Airflow.
"""

from __future__ import annotations

SOURCE_POOL = "tidemark_source"
SOURCE_POOL_SLOTS = 4  # connections to the source
CONNECTIONS_OF_A_TABLE = 2  # one holds the snapshot, one reads; a table's task takes a slot for each
