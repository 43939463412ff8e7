# The extension of csrc/bindings.cpp and csrc/bindings/.

from collections.abc import Callable
from enum import Enum

PANEL: int
has_openmp: bool
SAVED_HEADER_BYTES: int
OPERATIONS: dict[str, int]  # codes of what pointwise/program.py names

class Block:
    def __init__(self, bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Scalar(Enum):
    float16 = ...
    bfloat16 = ...
    float32 = ...
    float64 = ...

class Reduction(Enum):
    mean = ...
    mean_all = ...
    mean_nonzero = ...
    sum = ...
    none = ...

class FormulaKind(Enum):
    circle = ...
    unified = ...
    functions = ...

class Formula:
    def __init__(
        self,
        *,
        kind: FormulaKind,
        gamma_pos: float,
        gamma_neg: float,
        optimum_pos: float,
        optimum_neg: float,
        margin_pos: float,
        margin_neg: float,
        detach_weights: bool,
        # of functions four, as cpu_arguments.ByteCode has them
        programs: list[tuple[list[float], int, list[tuple[int, list[int], int]]]],
    ) -> None: ...

# values, count, dim, row_stride, dim_stride, labels, label_stride
Side = tuple[int, int, int, int, int, int, int]
# normalize, skip_below, kept_tiles, threads, bfloat_terms, both_sides
Settings = tuple[bool, float, int, int, int, bool]
# address, row_stride of listed pairs; address, stride of own columns
Pairs = tuple[int, int, int, int]

def level() -> str: ...
def supported_levels() -> list[str]: ...
def forward(
    scalar: Scalar,
    rows: Side,
    columns: Side | None,
    formula: Formula,
    settings: Settings,
    pairs: Pairs,
    results: tuple[int, int, int, int],  # lse_pos, lse_neg, saved, its bytes
) -> None: ...
def save(
    scalar: Scalar,
    rows: Side,
    columns: Side | None,
    formula: Formula,
    settings: Settings,
    pairs: Pairs,
    tensors: tuple[int, int, int, int],  # lse_pos, lse_neg, saved, its bytes
) -> None: ...
def mark_pairs(
    list: tuple[int, int, int],  # rows, columns, count
    kind: int,
    matrix: tuple[int, int, int, int],  # kinds, rows, columns, row_stride
    threads: int,
) -> bool: ...
def row_losses(
    is_double: bool,
    tensors: tuple[int, int, int, int],  # lse_pos, lse_neg, loss, slopes
    rows: int,
    reduction: Reduction,
) -> None: ...
def backward(
    scalar: Scalar,
    rows: Side,
    columns: Side | None,
    formula: Formula,
    settings: Settings,
    pairs: Pairs,
    # saved, its bytes, grad_lse_pos, grad_lse_neg, column_statistics, grad_rows, grad_columns
    tensors: tuple[int, int, int, int, int, int, int],
) -> None: ...
def scale_gradients(
    scalar: Scalar,
    rows: Side,
    columns: Side | None,
    formula: Formula,
    settings: Settings,
    pairs: Pairs,
    # saved, its bytes, grad_lse_pos, grad_lse_neg, column_statistics, gradients
    tensors: tuple[int, int, int, int, int, int],
) -> None: ...
def loss_and_gradients(
    scalar: Scalar,
    rows: Side,
    columns: Side | None,
    formula: Formula,
    settings: Settings,
    pairs: Pairs,
    reduction: Reduction,
    tensors: tuple[int, int, int, int],  # saved bytes, loss, grad_rows, grad_columns
) -> None: ...
def exact_similarities(
    sides: tuple[int, int, int],  # rows, columns, dim
    pairs: tuple[int, int, int, int],  # row indices, column indices, their count, similarities
    threads: int,
) -> None: ...
def count_above(
    sides: tuple[int, int, int],  # rows, columns, dim
    # their counts, thresholds, offsets, at_least, above
    counts: tuple[int, int, int, int, int, int],
    threads: int,
    advance: Callable[[int], object] | None,
) -> None: ...
