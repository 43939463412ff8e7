"""Argument checks of the public functions: each error names the argument and what is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def check_embeddings(name: str, value: Tensor) -> None:
    """Require a floating-point matrix with at least one column."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (rows, D), got {_describe(value)}")
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {_describe(value)}"
        )
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must have shape (rows, D) with D >= 1, got {_describe(value)}")


def check_labels(name: str, value: Tensor, rows: int, of: str) -> None:
    """Require one integer label per row of the matrix named ``of``."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be an integer tensor of shape (rows,), got {_describe(value)}"
        )
    if value.dtype not in INTEGER_DTYPES:
        raise TypeError(
            f"{name} must be integers (one class number per row), got {_describe(value)}"
        )
    if value.dim() != 1:
        raise ValueError(
            f"{name} must have shape (rows,), got {_describe(value)}; "
            "labels of shape (rows, 1) need .squeeze(1)"
        )
    if value.shape[0] != rows:
        raise ValueError(
            f"{name} must have one entry per row of {of}: wanted {rows}, got {value.shape[0]}"
        )


def check_references(name: str, value: Tensor, embeddings: Tensor) -> None:
    """Require a matrix that checked embeddings can be compared with."""
    check_embeddings(name, value)
    if value.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"{name} must have as many columns as embeddings: "
            f"wanted {embeddings.shape[1]}, got {value.shape[1]}"
        )
    if value.dtype != embeddings.dtype:
        raise TypeError(
            f"{name} must have the dtype of embeddings: wanted {embeddings.dtype}, "
            f"got {value.dtype}"
        )
    if value.device != embeddings.device:
        raise ValueError(
            f"{name} must be on the device of embeddings: wanted {embeddings.device}, "
            f"got {value.device}"
        )


def check_pair_inputs(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
) -> tuple[Tensor, Tensor | None]:
    """Check everything and return both label tensors as int64 on the embeddings' device."""
    check_embeddings("embeddings", embeddings)
    check_labels("labels", labels, embeddings.shape[0], of="embeddings")
    if (ref_emb is None) != (ref_labels is None):
        given, missing = (
            ("ref_emb", "ref_labels") if ref_labels is None else ("ref_labels", "ref_emb")
        )
        raise ValueError(f"{given} was given without {missing}; give both or neither")
    if ref_emb is not None and ref_labels is not None:
        check_references("ref_emb", ref_emb, embeddings)
        check_labels("ref_labels", ref_labels, ref_emb.shape[0], of="ref_emb")
        ref_labels = ref_labels.to(embeddings.device, torch.int64)
    return labels.to(embeddings.device, torch.int64), ref_labels


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Require one of a few strings."""
    if value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {wanted}; got {value!r}")


def check_similarities(sp: Tensor, sn: Tensor) -> tuple[Tensor, Tensor]:
    """Check two vectors of similarities; half types come back as float32."""
    for name, value in (("sp", sp), ("sn", sn)):
        if not isinstance(value, Tensor) or value.dtype not in FLOATING_DTYPES:
            raise TypeError(f"{name} must be a floating-point tensor, got {_describe(value)}")
        if value.dim() != 1:
            raise ValueError(f"{name} must have shape (pairs,), got {_describe(value)}")
    if sn.dtype != sp.dtype:
        raise TypeError(f"sn must have the dtype of sp: wanted {sp.dtype}, got {sn.dtype}")
    if sn.device != sp.device:
        raise ValueError(f"sn must be on the device of sp: wanted {sp.device}, got {sn.device}")
    if sp.dtype in (torch.float16, torch.bfloat16):
        return sp.float(), sn.float()
    return sp, sn


def check_skip_below(skip_below: float) -> None:
    """Require a share in [0, 1)."""
    if not isinstance(skip_below, (int, float)) or isinstance(skip_below, bool):
        raise TypeError(f"skip_below must be a number, got {_describe(skip_below)}")
    if not 0 <= skip_below < 1:
        raise ValueError(f"skip_below must be in [0, 1), got {skip_below!r}")


def check_integer(name: str, value: int, smallest: int | None = None) -> None:
    """Require an integer, where ``smallest`` is given one not below it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {_describe(value)}")
    if smallest is not None and value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value!r}")


def check_sample_rate(sample_rate: float) -> None:
    """Require a share in (0, 1]."""
    if not isinstance(sample_rate, (int, float)) or isinstance(sample_rate, bool):
        raise TypeError(f"sample_rate must be a number, got {_describe(sample_rate)}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate!r}")
