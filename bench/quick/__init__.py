"""``python -m bench quick``."""
