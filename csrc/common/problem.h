// What the kernels are given: plain structs over the caller's memory. Nothing here depends on an
// instruction set, on Python or on torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace circle_kernels {

enum class Scalar { float16, bfloat16, float32, float64 };

enum class FormulaKind { circle, unified, functions };

struct FormulaPrograms;  // program.h

// The pair formula and its numbers; circle_kernels/formula.py says what they mean.
struct Formula {
  FormulaKind kind;
  double gamma_pos, gamma_neg;
  double optimum_pos, optimum_neg;  // O_p, O_n; unused by the unified formula
  double margin_pos, margin_neg;    // Delta_p, Delta_n
  bool detach_weights;
  const FormulaPrograms* programs =
      nullptr;  // of functions, for which the rest but gamma is unused
};

// One set of embeddings with its labels, as the caller holds it. Strides count elements.
struct Embeddings {
  const void* values;  // (count, dim)
  int64_t count, dim;
  int64_t row_stride, dim_stride;
  const int64_t* labels;  // (count,)
  int64_t label_stride;
};

// What is said of one pair (i, j) where pairs are listed: how row i counts it and, in self mode,
// how row j does. Not both positive and negative.
enum ListedPair : uint8_t {
  ROW_POSITIVE = 1,
  ROW_NEGATIVE = 2,
  COLUMN_POSITIVE = 4,
  COLUMN_NEGATIVE = 8,
};

// One call of the fused operation. With `self_mode` the columns are the rows, and the pair of an
// embedding with itself is neither positive nor negative unless it is listed. With `both_sides`,
// which is not for self mode, columns count pairs as rows do, each for itself.
struct Problem {
  Scalar scalar;
  Embeddings rows;     // (N, D)
  Embeddings columns;  // (M, D); the rows again in self mode
  bool self_mode;
  Formula formula;
  bool normalize;
  double skip_below;   // share of a row's weight that the backward pass may drop
  int64_t kept_tiles;  // tiles that the forward pass leaves for the backward pass
  int threads;         // at least 1
  // bfloat16 products that replace one float product: 0 for none, 1, or 3 for nearly float's
  // digits. What is asked for float32 embeddings; for bfloat16 embeddings one is exact.
  int bfloat_terms;
  // ListedPair of every pair, which then stands for labels; null without. Both counts are padded to
  // whole panels, with 0. All labels must be equal, so that embeddings keep their order.
  const uint8_t* listed = nullptr;
  int64_t listed_stride = 0;
  bool both_sides = false;
  // (N,) which of the columns is each row's own copy, a pair of neither kind; -1 for none. Null
  // without, in self mode and where pairs are listed.
  const int64_t* own_columns = nullptr;
  int64_t own_stride = 0;
  // Asked by the calling thread between pieces of work, some microseconds apart; true ends the pass
  // before it is done. Null where nobody wants to be asked.
  bool (*interrupted)() = nullptr;

  // Who count pairs: rows, and after them columns where they do.
  int64_t anchors() const { return rows.count + (both_sides ? columns.count : 0); }
};

// Vectors of the forward pass. T is double for float64 inputs and float for all others; pointers
// are untyped so that one struct serves both. A is Problem::anchors().
struct ForwardResult {
  void* lse_pos;  // T (A,), natural logarithm, -inf where the set is empty
  void* lse_neg;  // T (A,)
  // T (SavedLayout::size(),), aligned to a cache line, for the backward pass; null if there will be
  // none.
  void* saved;
  int64_t saved_bytes;
};

struct BackwardInput {
  const void* saved;  // T, what the forward pass left there, aligned as it was
  int64_t saved_bytes;
  const void* grad_lse_pos;  // T (A,)
  const void* grad_lse_neg;  // T (A,)
  // T (4, M) where columns are rows of the same batch as well, and count each pair, too: their
  // lse_pos, lse_neg (natural), grad_lse_pos and grad_lse_neg. Null without, in self mode, where
  // that is known, and with `both_sides`.
  const void* column_statistics = nullptr;
};

// Log-sum-exps that are known already, perhaps over more columns than the problem has.
struct KnownSums {
  const void* lse_pos;  // T (A,), natural logarithm, -inf where the set is empty
  const void* lse_neg;  // T (A,)
  void* saved;          // as in ForwardResult
  int64_t saved_bytes;
};

// Contiguous, in the embeddings' scalar type; null where it is not needed.
struct Gradients {
  void* rows;     // (N, D)
  void* columns;  // (M, D); always null in self mode
};

// Rows of a panel, and rows and columns of a tile: a multiple of every instruction set's register
// tile. A float tile of similarities (36 KB) stays in the second-level cache.
constexpr int64_t PANEL = 96;

constexpr int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

constexpr int64_t tiles_of(int64_t rows, int64_t columns, bool self_mode) {
  return self_mode ? panels_of(rows) * (panels_of(rows) + 1) / 2
                   : panels_of(rows) * panels_of(columns);
}

// Of T.
constexpr int64_t result_bytes(Scalar scalar) { return scalar == Scalar::float64 ? 8 : 4; }

// A cache line, so that what follows is aligned to one.
constexpr int64_t SAVED_HEADER_BYTES = 64;

// What the forward pass leaves for the backward pass, in elements of T, one part after the other.
struct SavedLayout {
  int64_t header;      // what it belongs to: saved_header.h
  int64_t kept_tiles;  // the first so many tiles, PANEL * PANEL each; saved.h says what of them
  int64_t rows;        // of each base-2 log-sum-exp of rows, positive then negative, in panel order
  int64_t columns;     // the same of columns, where these count pairs for themselves
  int64_t shifts;      // each kept tile's two, where weights are kept
  int64_t highest;     // each tile's highest logit, where skip_below can use it

  explicit SavedLayout(const Problem& problem)
      : header(SAVED_HEADER_BYTES / result_bytes(problem.scalar)),
        kept_tiles(problem.kept_tiles),
        rows(panels_of(problem.rows.count) * PANEL),
        columns(problem.both_sides ? panels_of(problem.columns.count) * PANEL : 0),
        shifts(problem.skip_below > 0 ? 0 : 2 * kept_tiles),
        highest(problem.skip_below > 0
                    ? tiles_of(problem.rows.count, problem.columns.count, problem.self_mode)
                    : 0) {}

  int64_t size() const {
    return header + kept_tiles * PANEL * PANEL + 2 * (rows + columns) + shifts + highest;
  }
};

}  // namespace circle_kernels
