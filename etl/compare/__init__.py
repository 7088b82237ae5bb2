"""Finds what differs between a source table and its raw table. `etl.replicate` repairs it."""
