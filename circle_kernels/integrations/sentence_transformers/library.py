"""What the losses take of the library."""

from __future__ import annotations

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import cos_sim, dot_score
except ModuleNotFoundError as _error:
    if _error.name != "sentence_transformers":
        raise
    raise ImportError(
        "circle_kernels.integrations.sentence_transformers needs that library: "
        "pip install 'sentence-transformers>=6'",
        name=_error.name,
    ) from _error

__all__ = ["SentenceTransformer", "cos_sim", "dot_score"]
