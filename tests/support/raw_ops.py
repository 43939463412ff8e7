"""The registered ops, called as a user may who found them: whatever they are given reaches them."""

from __future__ import annotations

from typing import Any

import torch

from circle_kernels import CircleFormula
from circle_kernels.operation.registered import encode_precision


def call_op(name: str, formula: CircleFormula, **given: Any) -> Any:
    """An op by its name, with arguments by theirs; those not given are usual ones."""
    operation = getattr(torch.ops.circle_kernels, name).default
    usual = {
        "formula": formula.name,
        "parameters": formula.parameters(),
        "detach_weights": formula.detach_weights,
        "normalize": True,
        "skip_below": 0.0,
        "backend": "auto",
        "keep_for_backward": True,
        "precision": encode_precision("highest"),
        "needs_embeddings": True,
        "needs_references": True,
        "saved_layout": 0,
    }
    arguments = []
    for argument in operation._schema.arguments:
        value = {**usual, **given}.get(argument.name)
        if argument.name == "parameters" and str(argument.type) == "Tensor":
            value = torch.tensor(value, dtype=torch.float64)
        arguments.append(value)
    return operation(*arguments)
