"""The circle and the unified loss where not only labels choose pairs, or gamma is learned."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor

from circle_kernels.distributed.sharing import OF_SHARING
from circle_kernels.formula import CircleFormula, UnifiedFormula
from circle_kernels.losses.pairs import PairOptions, pair_rows
from circle_kernels.operation.batch import check_scale, number_of
from circle_kernels.operation.chosen_pairs import OF_PAIRS, Tensors
from circle_kernels.operation.reductions import loss_of_sets, softplus
from circle_kernels.options import Reduction, Scope

_OF_FORMULA = ("m", "gamma", "detach_weights")


def loss_of_chosen(
    formula_type: type[CircleFormula] | type[UnifiedFormula],
    tensors: Tensors,
    rows: tuple[Scope, Reduction],
    pairs: tuple[Any, ...],
    options: dict[str, Any],
) -> Tensor:
    """The loss where not only labels say which pairs count, or gamma is a tensor."""
    scope, reduction = rows
    numbers = {name: options.pop(name) for name in _OF_FORMULA if name in options}
    scale = None
    if isinstance(numbers["gamma"], Tensor):
        scale = check_scale("gamma", numbers["gamma"])
        numbers["gamma"] = number_of(scale)
    options.update(zip((*OF_PAIRS, *OF_SHARING), pairs, strict=True))
    call = f"{formula_type.name}_loss"
    for name in ("pair_mask", "group") if scope == "batch" else ():
        if options[name] is not None:
            raise ValueError(
                f"{call} takes {name} with scope='anchor' where labels do not say alone which "
                "pairs count; got scope='batch'"
            )
    checked = pair_rows(
        call,
        lambda: formula_type(**numbers),
        tensors,
        reduction,
        cast(PairOptions, options),
        scope=scope,
        scale=scale,
    )
    exponents = checked.logsumexps()
    if scope == "batch":
        return loss_of_sets(*exponents, in_self_mode=tensors[2] is None)
    both = exponents[0] + exponents[1]
    return checked.reduced(softplus(both), both != -math.inf)
