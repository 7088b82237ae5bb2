"""What `make` runs on one machine: the environment, embedded servers, the example source, the pipeline, Airflow.

It calls `etl`, `source_db` and dbt; none of them imports it.
"""
