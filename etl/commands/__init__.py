"""What a person or a schedule asks for, one module a command.

Printing is the work of `etl.cli` and `etl.display`.
"""
