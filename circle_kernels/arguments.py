"""Checks of tensors that users give: each error names the argument and what is wanted."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.backends.addressable import all_addressable, lacks_memory, materialized

FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIGNED_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED_DTYPES = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
INTEGER_DTYPES = (*SIGNED_DTYPES, *UNSIGNED_DTYPES)
INT64 = torch.iinfo(torch.int64)

MINERS = (
    "the tuples of pytorch-metric-learning's miners are taken by "
    "circle_kernels.integrations.pytorch_metric_learning.CircleLoss"
)


# Entries that a kernel may pad a matrix to; more than any address reaches.
_MOST_ENTRIES = 2**58


def describe(value: object) -> str:
    """What came, in words."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested {value.dtype} tensor on {value.device}"
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, int) and value.bit_length() > 200:  # Python may refuse to print it
        return f"an integer of {value.bit_length()} bits"
    return f"{type(value).__name__} {value!r}"


def check_embeddings(name: str, value: Tensor) -> None:
    """Require a floating-point matrix with at least one column."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (rows, D), got {describe(value)}")
    if value.dtype not in FLOATING_DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {describe(value)}"
        )
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape (rows, D) with D >= 1, got {describe(value)}"
            f"{_pooling_advice(value)}"
        )
    if (
        not torch.compiler.is_compiling()
        and max(value.shape[0], 256) * value.shape[1] > _MOST_ENTRIES
    ):
        raise ValueError(f"{name} must fit in memory, got {describe(value)}")


def check_labels(name: str, value: Tensor, rows: int, of: str) -> None:
    """Require one integer label per row of the matrix named ``of``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an integer tensor of shape (rows,), got {describe(value)}")
    if value.dtype not in INTEGER_DTYPES:
        raise TypeError(
            f"{name} must be integers (one class number per row), got {describe(value)}"
            f"{_label_advice(value)}"
        )
    if value.dim() != 1:
        raise ValueError(
            f"{name} must have shape (rows,), got {describe(value)}{_label_advice(value)}"
        )
    if value.shape[0] != rows:
        raise ValueError(
            f"{name} must have one entry per row of {of}: wanted {rows}, got {value.shape[0]}"
        )


def check_references(name: str, value: Tensor, embeddings: Tensor, of: str = "embeddings") -> None:
    """Require a matrix that checked embeddings, named ``of``, can be compared with."""
    check_embeddings(name, value)
    if value.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"{name} must have as many columns as {of}: "
            f"wanted {embeddings.shape[1]}, got {value.shape[1]}"
        )
    if value.device != embeddings.device:
        raise ValueError(
            f"{name} must be on the device of {of}: wanted {embeddings.device}, got {value.device}"
        )


def check_pair_inputs(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
    """Check everything and return it as kernels take it: embeddings and references of one dtype,
    both labels as int64 on the embeddings' device; and whether all of it is addressable."""
    if isinstance(ref_emb, (tuple, list)):
        raise TypeError(
            f"ref_emb must be a tensor of shape (rows, D), got a {type(ref_emb).__name__} of "
            f"{len(ref_emb)}; {MINERS}"
        )
    readable = torch.compiler.is_compiling() or all_addressable(
        embeddings, labels, ref_emb, ref_labels
    )
    if not readable:
        check_kinds(embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=ref_labels)
    check_not_swapped("embeddings", embeddings, "labels", labels)
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
    if not readable:
        embeddings, labels = materialized(embeddings), materialized(labels)
    labels = beside("labels", labels, embeddings)
    if ref_emb is None or ref_labels is None:
        return embeddings, label_numbers(labels)[0], None, None, readable
    if not readable:
        ref_emb, ref_labels = materialized(ref_emb), materialized(ref_labels)
    labels, ref_labels = label_numbers(labels, beside("ref_labels", ref_labels, embeddings))
    embeddings, ref_emb = one_dtype(embeddings, ref_emb)
    return embeddings, labels, ref_emb, ref_labels, readable


def check_kinds(**tensors: Any) -> None:
    """Require of those that are tensors that each has its own numbers, one for each entry.

    Compilers show no memory to look at, and find out what they cannot trace.
    """
    if torch.compiler.is_compiling():
        return
    given = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    for name, value in given.items():
        _check_dense(name, value)
    check_real_or_fake(given)


def _check_dense(name: str, value: Tensor) -> None:
    if lacks_memory(value):
        raise ValueError(
            f"{name} must have memory for its entries, got {describe(value)} whose storage was "
            "freed or resized"
        )
    if value.is_nested or value.layout is not torch.strided:
        layout = "nested" if value.is_nested else str(value.layout)
        raise TypeError(
            f"{name} must be a dense tensor, got {describe(value)} with the layout {layout}; "
            "use .to_dense(), or torch.nested.to_padded_tensor for nested ones"
        )
    check_undistributed(name, value)


def is_distributed(value: object) -> bool:
    """Whether it is a DTensor; nobody has one who has not imported the module, which is large."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(value, distributed.DTensor)


def check_undistributed(name: str, value: Tensor) -> None:
    """Require a tensor that is all here."""
    if is_distributed(value):
        raise TypeError(
            f"{name} must be an ordinary tensor, got {describe(value)} that is a DTensor; use "
            f"{name}.full_tensor(), with group= {name}.to_local(), which are this process's rows "
            "(each of all would count once for each process), or of a sharded module call the "
            "module itself"
        )


def check_real_or_fake(tensors: dict[str, Tensor]) -> None:
    """Require fake tensors only, or none: together they can be neither computed nor traced."""
    fake = [name for name, value in tensors.items() if isinstance(value, FakeTensor)]
    if fake and len(fake) < len(tensors) and not is_in_torch_dispatch_mode():
        real = [name for name in tensors if name not in fake]
        raise TypeError(
            f"{', '.join(fake)} must hold numbers as {', '.join(real)} do, got fake tensors; "
            "under FakeTensorMode make all of them fake"
        )


def beside(name: str, labels: Tensor, embeddings: Tensor) -> Tensor:
    """Checked labels on the device of the embeddings."""
    if labels.is_meta and not embeddings.is_meta:
        raise ValueError(f"{name} must hold numbers, got {describe(labels)}")
    return labels.to(embeddings.device)


def one_dtype(embeddings: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: under autocast they may differ."""
    if embeddings.dtype == references.dtype:
        return embeddings, references
    dtype = torch.promote_types(embeddings.dtype, references.dtype)
    return embeddings.to(dtype), references.to(dtype)


def check_similarities(sp: Tensor, sn: Tensor) -> tuple[Tensor, Tensor]:
    """Check two vectors of similarities; half types come back as float32."""
    check_kinds(sp=sp, sn=sn)
    for name, value in (("sp", sp), ("sn", sn)):
        if not isinstance(value, Tensor) or value.dtype not in FLOATING_DTYPES:
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
        if value.dim() != 1:
            raise ValueError(f"{name} must have shape (pairs,), got {describe(value)}")
    if sn.device != sp.device:
        raise ValueError(f"sn must be on the device of sp: wanted {sp.device}, got {sn.device}")
    sp, sn = one_dtype(sp, sn)
    if sp.dtype in (torch.float16, torch.bfloat16):
        return sp.float(), sn.float()
    return sp, sn


def label_numbers(*labels: Tensor) -> tuple[Tensor, ...]:
    """int64 numbers for one or more vectors of labels, equal exactly where labels are (``==``).

    Signed integers keep their values and so do unsigned ones and booleans below 2^63. Floats, which
    the losses do not take but code that they replace does, get other numbers; NaN equals nothing.

    Raises:
        TypeError: labels of another kind, or uint64 beside signed integers, which no dtype holds.
    """
    dtypes = {each.dtype for each in labels}
    if dtypes == {torch.int64}:
        return labels
    if not dtypes.isdisjoint(FLOATING_DTYPES) and dtypes.issubset(INTEGER_DTYPES + FLOATING_DTYPES):
        return _numbers_of_floats(*labels)
    if not dtypes.issubset(INTEGER_DTYPES):
        raise TypeError(f"labels must be integers, got {', '.join(map(describe, labels))}")
    if torch.uint64 in dtypes and not dtypes.isdisjoint(SIGNED_DTYPES):
        raise TypeError(
            "labels and ref_labels must both be signed or both unsigned where one is uint64, got "
            f"{', '.join(map(describe, labels))}"
        )
    return tuple(
        each.view(torch.int64) if each.dtype == torch.uint64 else each.to(torch.int64)
        for each in labels
    )


def _numbers_of_floats(*labels: Tensor) -> tuple[Tensor, ...]:
    """The bits of floats; each NaN gets a pattern of its own among those of NaN."""
    dtype = functools.reduce(torch.promote_types, (each.dtype for each in labels))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = torch.cat([each.to(dtype).to(wide) for each in labels])
    values = values.masked_fill(values == 0, 0.0)  # -0.0 as well
    bits = values.view(torch.int64 if wide == torch.float64 else torch.int32).to(torch.int64)
    of_its_own = INT64.max - torch.arange(len(values), device=values.device)
    numbers = torch.where(values.isnan(), of_its_own, bits)
    return numbers.split([len(each) for each in labels])


def check_not_swapped(name: str, value: object, other_name: str, other: object) -> None:
    """Raise where integers came for a matrix of floats, and floats for the labels."""
    if (
        isinstance(value, Tensor)
        and value.dtype in INTEGER_DTYPES
        and isinstance(other, Tensor)
        and other.dim() == 2
        and other.dtype in FLOATING_DTYPES
    ):
        raise TypeError(
            f"{name} and {other_name} are swapped: got {describe(value)} for {name} and "
            f"{describe(other)} for {other_name}"
        )


def _pooling_advice(embeddings: Tensor) -> str:
    if embeddings.dim() < 3:
        return ""
    axes = "1" if embeddings.dim() == 3 else str(tuple(range(2, embeddings.dim())))
    kind = "sequences" if embeddings.dim() == 3 else "feature maps"
    return f"; {kind} have to be pooled to one vector per row first, for example .mean({axes})"


def _label_advice(labels: Tensor) -> str:
    if labels.dim() == 2 and labels.shape[1] > 1:
        return "; one-hot labels need .argmax(1)"
    if labels.dim() == 2:
        return "; labels of shape (rows, 1) need .squeeze(1)"
    if labels.is_floating_point():
        return "; class numbers that came as floats need .long()"
    return ""
