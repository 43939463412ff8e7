// Products of bfloat16 operands: what a machine with instructions for them has beside the kernels.
//
// Operands are pairs of bfloat16 in 32-bit words. A product of several terms is one product of a
// greater depth: with x = high + low, both bfloat16,
//
//     x y = high_x high_y + high_x low_y + low_x high_y        (the term low_x low_y is below
//     rounding)
//
// is the sum over the terms (high, high, low) of one side and (high, low, high) of the other.
#pragma once

#include <cstdint>

#include "common/problem.h"

namespace circle_kernels {

using BFloatPair = uint32_t;

// A multiple of every instruction's depth; dimensions are padded to it with zeros.
constexpr int64_t BFLOAT_DEPTH = 32;

constexpr int64_t padded_dim(int64_t dim) {
  return (dim + BFLOAT_DEPTH - 1) / BFLOAT_DEPTH * BFLOAT_DEPTH;
}

// Words of each operand of one panel.
constexpr int64_t operand_words(int64_t dim, int terms) {
  return terms * padded_dim(dim) * PANEL / 2;
}

// One panel as operand of the three places it can stand in.
struct BFloatOperand {
  BFloatPair* rows;      // of the similarities: (PANEL, terms * dim), for instructions that want it
  BFloatPair* columns;   // of the similarities: (terms * dim / 2, PANEL) pairs of neighbouring d
  BFloatPair* gradient;  // of the gradient: (dim, terms * PANEL), pairs of neighbouring rows
};

struct BFloatProducts {
  // Called by a thread before its first and after its last product.
  void (*begin)();
  void (*end)();
  // tile(i, j) = sum_d rows(i, d) columns(d, j), all of it
  void (*similarities)(const BFloatOperand& rows, const BFloatOperand& columns, int64_t dim,
                       int terms, float* tile);
  // gradient(d, i) += sum_k operand(d, k) weights(k, i)   for d in [first_dim, last_dim), which are
  // multiples of BFLOAT_DEPTH; `weights` is (terms * PANEL / 2, PANEL) pairs of neighbouring k
  void (*accumulate)(const BFloatOperand& operand, const BFloatPair* weights, int terms,
                     int64_t first_dim, int64_t last_dim, float* gradient);
  // Whether three terms are faster than one product in float.
  bool three_terms_pay;
};

}  // namespace circle_kernels
