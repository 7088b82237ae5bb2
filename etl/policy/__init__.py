"""Pure decisions: what a run may do with what it has read. No module here imports a driver or opens a file."""
