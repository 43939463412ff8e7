"""``python -m bench class``."""
