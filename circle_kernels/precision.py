"""How exactly float32 may be multiplied: what PyTorch was told, in its old way or its new one."""

from __future__ import annotations

import torch

# Since 2.9 each backend has a setting of its own, which reads right however it was made, where
# torch.get_float32_matmul_precision raises once one of them was made in the new way.
_HAS_SETTINGS = hasattr(torch._C, "_get_fp32_precision_getter")
_WORDS = {"tf32": "high", "bf16": "medium"}

# By their place: how operations carry one from the forward pass, which alone asks, to the backward.
PRECISIONS = ("highest", "high", "medium")


def float32_precision(device_type: str) -> str:
    """One of :data:`PRECISIONS`, which are ``torch.set_float32_matmul_precision``'s words.

    To be asked once for each forward pass: products that a backward pass computes again are taken
    relative to sums of the same products.
    """
    if not _HAS_SETTINGS:
        return torch.get_float32_matmul_precision()
    # What torch.backends.cuda.matmul.fp32_precision and torch.backends.mkldnn's ask, too.
    backend = "cuda" if device_type == "cuda" else "mkldnn"
    setting = torch._C._get_fp32_precision_getter(backend, "matmul")
    return _WORDS.get(setting, "highest")
