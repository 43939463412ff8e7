"""Pair formulas that users write as functions of the similarity."""
