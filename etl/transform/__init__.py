"""The way from `raw` to the marts: runs dbt on the project's models and tells what it answers."""
