"""Tests, in folders as the package has; what they share is in support."""
