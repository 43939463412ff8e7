"""The pair-wise losses as functions and as modules."""
