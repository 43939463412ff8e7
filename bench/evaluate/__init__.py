"""``python -m bench evaluate``."""
