// A product and a sum with one rounding.
#pragma once

#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

// a b + c. Of a b + c d compilers round whichever product they like before the sum, and another one
// when the code around it changes: with AVX-512 it is always c d. The other instruction sets' bits
// have not moved so far, and are left to the compiler.
CIRCLE_INLINE Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

CIRCLE_INLINE Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
  return a * b + c;
#endif
}

}  // namespace
}  // namespace circle_kernels
