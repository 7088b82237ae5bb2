"""Runs dbt on the project's models, from `raw` to the marts, one command at a time; reports the outcome of each."""
