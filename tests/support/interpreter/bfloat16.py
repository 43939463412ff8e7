"""bfloat16 in the interpreter, as devices multiply it and round to it."""

from __future__ import annotations

from typing import Any

import numpy as np


def correct_bfloat16() -> None:
    """Have the interpreter take bfloat16 for the numbers that it stands for.

    It holds them as 16-bit integers, and in some versions, Triton 3.9 among them, multiplies
    matrices of them as such; float32 is cut to its upper half where devices round to nearest even,
    and subnormal numbers are widened to others. Widening is exact, so that after it the product is
    the one that the interpreter has for float32.
    """
    from triton import language
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    dot, cast = interpreter_builder.create_dot, interpreter_builder.cast_impl

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != language.bfloat16:
            return operand
        return TensorHandle(widen(operand.data), language.float32)

    def dot_of_widened(left: Any, right: Any, *others: Any) -> Any:
        return dot(widened(left), widened(right), *others)

    def cast_by_rounding(source: Any, dtype: Any) -> Any:
        if dtype.scalar == language.bfloat16 and source.dtype.scalar.is_floating():
            return TensorHandle(narrow(source.data.astype(np.float32)), language.bfloat16)
        return cast(widened(source), dtype)

    interpreter_builder.create_dot = dot_of_widened
    interpreter_builder.cast_impl = cast_by_rounding


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that the bits of bfloat16 numbers stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 numbers nearest to float32 numbers, of two the even one."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    # A NaN may have its only bits in the lower half, and rounding could carry into its sign.
    of_nan = bits >> 16 | np.uint32(0x40)
    return np.where(np.isnan(values), of_nan, rounded).astype(np.uint16)
