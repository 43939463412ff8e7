# The extension that csrc/bindings.cpp builds.

from enum import Enum

PANEL: int

class Scalar(Enum):
    float16 = ...
    bfloat16 = ...
    float32 = ...
    float64 = ...

class FormulaKind(Enum):
    circle = ...
    unified = ...

class Embeddings:
    def __init__(
        self,
        *,
        values: int,
        count: int,
        dim: int,
        row_stride: int,
        dim_stride: int,
        labels: int,
        label_stride: int,
    ) -> None: ...

class Formula:
    def __init__(
        self,
        *,
        kind: FormulaKind,
        gamma: float,
        optimum_pos: float,
        optimum_neg: float,
        margin_pos: float,
        margin_neg: float,
        detach_weights: bool,
    ) -> None: ...

class Problem:
    def __init__(
        self,
        *,
        scalar: Scalar,
        rows: Embeddings,
        columns: Embeddings | None,
        formula: Formula,
        normalize: bool,
        skip_below: float,
        kept_tiles: int,
        threads: int,
        bfloat_terms: int,
    ) -> None: ...

def level(name: str) -> str: ...
def supported_levels() -> list[str]: ...
def forward(level: str, problem: Problem, *, lse_pos: int, lse_neg: int, saved: int) -> None: ...
def backward(
    level: str,
    problem: Problem,
    *,
    saved: int,
    grad_lse_pos: int,
    grad_lse_neg: int,
    grad_rows: int,
    grad_columns: int,
) -> None: ...
