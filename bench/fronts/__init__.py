"""The fronts against the frameworks that they stand in for: a file each, with `tables(quick)`."""
