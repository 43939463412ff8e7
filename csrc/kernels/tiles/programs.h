// Pair formulas of a user's own: programs, evaluated over the rows of a tile.
//
// An instruction is read once for the pairs of a row, whose values stay in the first-level cache;
// results go to tiles of their own, from where the passes' bodies load what closed formulas
// compute.
#pragma once

#include <cmath>

#include "common/programs/program.h"
#include "kernels/tiles/tile_logits.h"
#include "kernels/vectors/functions.h"

namespace circle_kernels {
namespace {

template <class T>
CIRCLE_INLINE Vec<Int<T>> mask_of(Vec<T> value) {
  return (Vec<Int<T>>)value;
}

template <class T>
CIRCLE_INLINE Vec<T> as_value(Vec<Int<T>> mask) {
  return (Vec<T>)mask;
}

// One instruction over a row of pairs: to[pair] = operation(a[pair], b[pair], c[pair]). Where torch
// has a NaN, there is one.
template <class T>
void run_instruction(Operation operation, const T* a, const T* b, const T* c, T* to) {
  const auto unary = [&](auto function) {
    CIRCLE_UNROLL_PAIRS
    for (int64_t at = 0; at < PANEL; at += LANES<T>) store<T>(to + at, function(load(a + at)));
  };
  const auto binary = [&](auto function) {
    CIRCLE_UNROLL_PAIRS
    for (int64_t at = 0; at < PANEL; at += LANES<T>) {
      store<T>(to + at, function(load(a + at), load(b + at)));
    }
  };
  const auto one_by_one = [&](auto function) {
    for (int64_t at = 0; at < PANEL; ++at) to[at] = function(a[at]);
  };
  // Of what is turned often, infinite or NaN, the standard library's.
  const auto turning = [&](int quarters, auto function) {
    Vec<Int<T>> near = mask_of<T>(Vec<T>{}) == 0;
    for (int64_t at = 0; at < PANEL; at += LANES<T>) {
      near &= magnitude<T>(load(a + at)) <= static_cast<T>(MOST_TURNED);
    }
    const Vec<T> counted = select<T>(near, splat(T(1)), Vec<T>{});
    if (smallest<T>(counted) == 0) return one_by_one(function);
    unary([=](Vec<T> x) { return sine<T>(x, quarters); });
  };
  using V = Vec<T>;
  switch (operation) {
    case Operation::copy:
      return unary([](V x) { return x; });
    case Operation::negative:
      return unary([](V x) { return -x; });
    case Operation::absolute:
      return unary([](V x) { return magnitude<T>(x); });
    case Operation::sign:
      return unary([](V x) {
        const V one = splat(T(1));
        return select<T>(x > 0, one, select<T>(x < 0, -one, V{}));
      });
    case Operation::exp:
      return unary([](V x) { return exp<T>(x); });
    case Operation::expm1:
      return unary([](V x) { return expm1<T>(x); });
    case Operation::log:
      return unary([](V x) { return log<T>(x); });
    case Operation::log1p:
      return unary([](V x) { return log1p<T>(x); });
    case Operation::sqrt:
      return one_by_one([](T x) { return std::sqrt(x); });
    case Operation::sin:
      return turning(0, [](T x) { return std::sin(x); });
    case Operation::cos:
      return turning(1, [](T x) { return std::cos(x); });
    case Operation::tanh:
      return unary([](V x) { return tanh<T>(x); });
    case Operation::sigmoid:
      return unary([](V x) { return T(1) / (T(1) + exp<T>(-x)); });
    case Operation::add:
      return binary([](V x, V y) { return x + y; });
    case Operation::subtract:
      return binary([](V x, V y) { return x - y; });
    case Operation::multiply:
      return binary([](V x, V y) { return x * y; });
    case Operation::divide:
      return binary([](V x, V y) { return x / y; });
    case Operation::maximum:
      return binary([](V x, V y) { return select<T>(x != x, x, at_least(x, y)); });
    case Operation::minimum:
      return binary([](V x, V y) { return select<T>(x != x, x, at_most(x, y)); });
    case Operation::greater:
      return binary([](V x, V y) { return as_value<T>(x > y); });
    case Operation::greater_equal:
      return binary([](V x, V y) { return as_value<T>(x >= y); });
    case Operation::equal:
      return binary([](V x, V y) { return as_value<T>(x == y); });
    case Operation::not_equal:
      return binary([](V x, V y) { return as_value<T>(x != y); });
    case Operation::logical_and:
      return binary([](V x, V y) { return as_value<T>(mask_of<T>(x) & mask_of<T>(y)); });
    case Operation::logical_or:
      return binary([](V x, V y) { return as_value<T>(mask_of<T>(x) | mask_of<T>(y)); });
    case Operation::logical_not:
      return unary([](V x) { return as_value<T>(~mask_of<T>(x)); });
    case Operation::number:
      return unary([](V x) { return select<T>(mask_of<T>(x), splat(T(1)), V{}); });
    case Operation::where:
      for (int64_t at = 0; at < PANEL; at += LANES<T>) {
        store<T>(to + at, select<T>(mask_of<T>(load(a + at)), load(b + at), load(c + at)));
      }
  }
}

// A program's results for `rows` rows of a tile.
template <class T>
void run_program(const Program& program, int64_t rows, const T* similarities,
                 T* places,     // (program.places, PANEL)
                 T* results) {  // (PANEL, PANEL)
  for (int64_t index = 0; index < program.constant_count; ++index) {
    const Vec<T> constant = splat(static_cast<T>(program.constants[index]));
    T* to = places + (1 + index) * PANEL;
    for (int64_t at = 0; at < PANEL; at += LANES<T>) store<T>(to + at, constant);
  }
  const Instruction* last = program.instructions + program.count - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const T* of_row = similarities + row * PANEL;
    const auto operand = [&](int32_t place) {
      return place == 0 ? of_row : places + place * PANEL;
    };
    for (const Instruction* each = program.instructions; each <= last; ++each) {
      T* to = each == last ? results + row * PANEL : places + each->result * PANEL;
      run_instruction<T>(each->operation, operand(each->operands[0]), operand(each->operands[1]),
                         operand(each->operands[2]), to);
    }
  }
}

// What programs gave for a tile, with the interface of closed formulas.
template <class T>
struct EvaluatedLogits {
  static constexpr bool EVALUATED = true;

  const T *positives, *negatives, *positive_slopes, *negative_slopes;  // (PANEL, PANEL)

  CIRCLE_INLINE Vec<T> positive(Vec<T>, int64_t at) const { return load(positives + at); }
  CIRCLE_INLINE Vec<T> negative(Vec<T>, int64_t at) const { return load(negatives + at); }
  CIRCLE_INLINE Vec<T> positive_slope(Vec<T>, int64_t at) const {
    return load(positive_slopes + at);
  }
  CIRCLE_INLINE Vec<T> negative_slope(Vec<T>, int64_t at) const {
    return load(negative_slopes + at);
  }
};

template <class T>
struct ProgramLogits {
  static constexpr bool EVALUATED = true;

  const FormulaPrograms* programs;
  T gamma_pos_base2, gamma_neg_base2;

  explicit ProgramLogits(const Formula& formula)
      : programs(formula.programs),
        gamma_pos_base2(static_cast<T>(formula.gamma_pos * LOG2_E)),
        gamma_neg_base2(static_cast<T>(formula.gamma_neg * LOG2_E)) {}
};

// Numbers of scratch memory that a thread needs for the logits and slopes of a tile.
template <class T>
int64_t logit_scratch_size(const ProgramLogits<T>& logits) {
  const FormulaPrograms& programs = *logits.programs;
  int64_t places = 0;
  for (const Program* program : {&programs.positive, &programs.negative, &programs.positive_slope,
                                 &programs.negative_slope}) {
    if (program->places > places) places = program->places;
  }
  return 4 * PANEL * PANEL + places * PANEL;
}

// Base-2 logits of one kind of pair.
template <class T>
void run_logits(const Program& program, T gamma_base2, int64_t rows, const T* similarities,
                T* places, T* logits) {
  run_program(program, rows, similarities, places, logits);
  for (int64_t at = 0; at < rows * PANEL; at += LANES<T>) {
    const Vec<T> logit = load(logits + at) * gamma_base2;
    const Vec<T> largest = splat(LARGEST_LOGIT<T>);
    store<T>(logits + at, at_least(-largest, at_most(largest, logit)));
  }
}

// Of logits that are there, whose highest may lie anywhere.
template <class T>
LogitRange<T> range_of_logits(const Range<T>& range) {
  if (range.empty()) return {0, 0};
  return {range.high, range.high - range.low};
}

// The logits of a tile; of positives only where it may have some.
template <class T>
TileLogits<T, EvaluatedLogits<T>> logits_of_tile(const ProgramLogits<T>& logits,
                                                 const Tile<T>& tile, const T* similarities,
                                                 const TileRanges<T>&, T* scratch) {
  constexpr int64_t TILE = PANEL * PANEL;
  T *positives = scratch, *negatives = scratch + TILE, *places = scratch + 4 * TILE;
  const int64_t rows = tile.live_rows();
  run_logits(logits.programs->negative, logits.gamma_neg_base2, rows, similarities, places,
             negatives);
  if (!tile.only_negatives()) {
    run_logits(logits.programs->positive, logits.gamma_pos_base2, rows, similarities, places,
               positives);
  }
  const TileRanges<T> ranges = ranges_of(tile, positives, negatives);
  return {{positives, negatives, scratch + 2 * TILE, scratch + 3 * TILE},
          range_of_logits(ranges.positive),
          range_of_logits(ranges.negative)};
}

// The slopes that logits_of_tile() promised, into the same memory.
template <class T>
void slopes_of_tile(const ProgramLogits<T>& logits, const Tile<T>& tile, const T* similarities,
                    T* scratch) {
  constexpr int64_t TILE = PANEL * PANEL;
  T* places = scratch + 4 * TILE;
  const int64_t rows = tile.live_rows();
  run_program(logits.programs->negative_slope, rows, similarities, places, scratch + 3 * TILE);
  if (tile.only_negatives()) return;
  run_program(logits.programs->positive_slope, rows, similarities, places, scratch + 2 * TILE);
}

}  // namespace
}  // namespace circle_kernels
