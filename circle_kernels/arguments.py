"""Argument checks of the public functions: each error names the argument and what is wanted."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.backends.addressable import PLAIN_TYPES, lacks_memory, materialized

FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


# Entries that a kernel may pad a matrix to; more than any address reaches.
_MOST_ENTRIES = 2**58


def _describe(value: object) -> str:
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested {value.dtype} tensor on {value.device}"
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
    _check_dense(name, value)
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must have shape (rows, D) with D >= 1, got {_describe(value)}")
    if (
        not torch.compiler.is_compiling()
        and max(value.shape[0], 256) * value.shape[1] > _MOST_ENTRIES
    ):
        raise ValueError(f"{name} must fit in memory, got {_describe(value)}")


def _check_dense(name: str, value: Tensor) -> None:
    """Require a tensor that has its own numbers, one for each entry of its shape."""
    if value.is_nested or value.layout is not torch.strided:
        layout = "nested" if value.is_nested else str(value.layout)
        raise TypeError(
            f"{name} must be a dense tensor, got {_describe(value)} with the layout {layout}; "
            "use .to_dense(), or torch.nested.to_padded_tensor for nested ones"
        )
    if torch.compiler.is_compiling():
        return
    if type(value) in PLAIN_TYPES:
        if lacks_memory(value):
            raise ValueError(
                f"{name} must have memory for its entries, got {_describe(value)} whose "
                "storage was freed or resized"
            )
        return
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(value, distributed.DTensor):
        raise TypeError(
            f"{name} must be an ordinary tensor, got {_describe(value)} that is a DTensor; use "
            f"{name}.full_tensor(), or of a sharded module call the module itself"
        )


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
    _check_dense(name, value)
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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check everything and return it as kernels take it: embeddings and references of one dtype,
    both labels as int64 on the embeddings' device."""
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
    check_real_or_fake(embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=ref_labels)
    labels = class_numbers("labels", labels, embeddings.device)
    if ref_emb is None or ref_labels is None:
        return numbers(embeddings), labels, None, None
    embeddings, ref_emb = one_dtype(numbers(embeddings), numbers(ref_emb))
    return embeddings, labels, ref_emb, class_numbers("ref_labels", ref_labels, embeddings.device)


def numbers(value: Tensor) -> Tensor:
    """The same tensor as kernels can read it; for compilers there is nothing to do."""
    return value if torch.compiler.is_compiling() else materialized(value)


def class_numbers(name: str, labels: Tensor, device: torch.device) -> Tensor:
    """Checked labels as int64 on the device of the embeddings."""
    if labels.is_meta and device.type != "meta":
        raise ValueError(f"{name} must hold numbers, got {_describe(labels)}")
    return numbers(labels).to(device, torch.int64)


def one_dtype(embeddings: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: under autocast they may differ."""
    if embeddings.dtype == references.dtype:
        return embeddings, references
    dtype = torch.promote_types(embeddings.dtype, references.dtype)
    return embeddings.to(dtype), references.to(dtype)


def check_real_or_fake(**tensors: Tensor | None) -> None:
    """Require fake tensors only, or none: together they can be neither computed nor traced."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return
    given = {name: value for name, value in tensors.items() if value is not None}
    fake = [name for name, value in given.items() if isinstance(value, FakeTensor)]
    if fake and len(fake) < len(given):
        real = [name for name in given if name not in fake]
        raise TypeError(
            f"{', '.join(fake)} must hold numbers as {', '.join(real)} do, got fake tensors; "
            "under FakeTensorMode make all of them fake"
        )


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
        _check_dense(name, value)
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
