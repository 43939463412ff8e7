"""``python -m bench tune``."""
