"""``python -m bench kernels``."""
