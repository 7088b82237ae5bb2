"""Finding what differs between a source table and its raw table. Repairing it is the work of `etl.replicate`."""
