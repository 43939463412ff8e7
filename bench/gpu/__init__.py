"""``python -m bench gpu``."""
