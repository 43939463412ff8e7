"""How processes share a batch: what users say beside which processes these are."""

from __future__ import annotations

from dataclasses import dataclass

from circle_kernels.distributed.groups import Group, check_group
from circle_kernels.options import (
    EXCHANGES,
    GRAD_REDUCTIONS,
    Exchange,
    GradReduction,
    check_choice,
    check_flag,
)

OF_SHARING = ("group", "exchange", "same_sizes", "grad_reduction")  # the fields of the class below


@dataclass(frozen=True)
class Sharing:
    """Arguments as for :func:`circle_kernels.circle_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range, or one that means nothing without a
            ``group``.
    """

    group: Group | None = None
    exchange: Exchange = "gather"
    same_sizes: bool = False
    grad_reduction: GradReduction = "mean"

    def __post_init__(self) -> None:
        check_group(self.group)
        check_choice("exchange", self.exchange, EXCHANGES)
        object.__setattr__(self, "same_sizes", check_flag("same_sizes", self.same_sizes))
        check_choice("grad_reduction", self.grad_reduction, GRAD_REDUCTIONS)
        if self.group is None:
            for name, default in (
                ("exchange", "gather"),
                ("same_sizes", False),
                ("grad_reduction", "mean"),
            ):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} needs group, which is None: the batch of "
                        "this process alone; group='world' shares it with all processes"
                    )
