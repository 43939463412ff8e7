"""A backend and a formula that are not the package's: what has to be written to add one."""
