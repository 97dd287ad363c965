"""Studies: one question each, answered by one command that prints a table."""
