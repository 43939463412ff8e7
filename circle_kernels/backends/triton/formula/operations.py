"""What programs need beside Triton's own operations, each right to a few roundings of float32."""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.primitives import LN_2

_LOG2_E = tl.constexpr(1.4426950216293335)  # in float32, and what that leaves of it
_LOG2_E_REST = tl.constexpr(1.925963033500e-08)
_QUADRANTS = tl.constexpr(0.6366197723675814)  # of one radian
# Half of pi in parts of few bits, whose products with small integers are exact (Cephes).
_HALF_PI = tl.constexpr(1.5703125)
_HALF_PI_REST = tl.constexpr(4.837512969970703125e-4)
_HALF_PI_LAST = tl.constexpr(7.54978995489188216e-8)


@triton.jit
def sign(x):
    """1, 0 or -1; 0 for NaN, as torch has it."""
    return tl.where(x > 0.0, 1.0, 0.0) - tl.where(x < 0.0, 1.0, 0.0)


@triton.jit
def exponential(x):
    """e^x, with what the product with log2(e) loses: tl.exp is wrong by a rounding times x."""
    exponent = x * _LOG2_E
    lost = tl.fma(x, tl.full(x.shape, _LOG2_E, tl.float32), -exponent) + x * _LOG2_E_REST
    power = tl.exp2(exponent)
    # Not beside infinity, whose product with 0 is NaN.
    return tl.where(tl.abs(exponent) < 127.0, tl.fma(power, lost * LN_2, power), power)


@triton.jit
def expm1(x):
    """e^x - 1: near 0 by the logarithm of what e^x was rounded to (W. Kahan)."""
    near = tl.abs(x) < 1.0
    power = tl.where(near, exponential(tl.where(near, x, 0.0)), 1.0)
    exact = power == 1.0
    close = (power - 1.0) * (x / tl.where(exact, 1.0, tl.log(power)))
    return tl.where(near, tl.where(exact, x, close), exponential(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x): the rounding of the sum, seen in the sum less 1, is undone by the quotient."""
    one_more = 1.0 + x
    exact = one_more == 1.0
    near = tl.abs(x) < 1.0
    close = tl.log(one_more) * (x / tl.where(exact | (near ^ True), 1.0, one_more - 1.0))
    return tl.where(near, tl.where(exact, x, close), tl.log(one_more))


@triton.jit
def tanh(x):
    """(1 - e^-2|x|) / (1 + e^-2|x|), with the sign of x."""
    fallen = expm1(-2.0 * tl.abs(x))
    size = -fallen / (2.0 + fallen)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); e^-x is infinite where this is 0 to float32."""
    return 1.0 / (1.0 + exponential(-x))


@triton.jit
def sine_after(x, QUADRANTS: tl.constexpr):
    """sin(x + QUADRANTS pi/2), for x of up to several thousands (Cephes)."""
    turns = tl.floor(x * _QUADRANTS + 0.5)
    rest = ((x - turns * _HALF_PI) - turns * _HALF_PI_REST) - turns * _HALF_PI_LAST
    square = rest * rest
    sine = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
    sine = rest + rest * square * sine
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square
    cosine = (cosine + 4.166664568298827e-2) * (square * square) - 0.5 * square + 1.0
    turns = turns + QUADRANTS
    quadrant = turns - 4.0 * tl.floor(0.25 * turns)
    size = tl.where((quadrant == 1.0) | (quadrant == 3.0), cosine, sine)
    return tl.where(quadrant >= 2.0, -size, size)
