"""Implementations of the fused operation, one module or folder each; see interface.py."""
