"""One machine: embedded servers, the example source, and the whole way from source to marts for `make`.

A floor above the command line: it calls `etl`, `source_db` and dbt, and nothing below imports it.
"""
