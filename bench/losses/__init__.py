"""``python -m bench losses``."""
