"""Implementations of the fused operation, one module or folder each; see problem.py."""
