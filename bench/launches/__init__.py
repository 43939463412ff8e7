"""``python -m bench launches``."""
