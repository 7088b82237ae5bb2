"""What scheduled tasks call: the steps of the pipeline, the connections they use, and alerts about failures.

The DAG files in `airflow/dags` arrange these steps; nothing here knows their order. Begin at `steps`.
"""
