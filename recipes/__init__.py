"""The experiments of the circle loss paper as programs: ``python -m recipes CONFIG --data DIR``."""
