"""Adapters to other libraries, each importable only with its library."""
