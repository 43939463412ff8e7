"""``python -m bench loss``."""
