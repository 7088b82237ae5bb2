"""What scheduled tasks call: the steps of the pipeline, the connections that they use, and who is told of failures.

The DAG files in `airflow/dags` arrange these steps; nothing here knows of an order. Begin at `steps`.
"""
