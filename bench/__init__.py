"""Benchmarks of circle_kernels beside its peers: ``python -m bench --help``.

Not part of the installed package; runs from a checkout.
"""
