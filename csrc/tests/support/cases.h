// Problems for the tests: what is asked, and inputs made for it.
#pragma once

#include <string>
#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/programs.h"

namespace circle_kernels {

enum class Labels { few_classes, pairs, one_class, all_distinct, class_weights };

enum class Layout {
  contiguous,
  transposed,   // columns of memory are embeddings
  gaps,         // elements that belong to nobody between all others, and between labels
  same_row,     // row stride 0
  same_values,  // dim stride 0
};

enum class Upstream {
  everywhere,
  few_rows,        // exactly 0 for all others, so that whole tiles have no gradient
  positives_only,  // exactly 0 for every lse_neg
};

struct Case {
  Scalar scalar = Scalar::float32;
  int64_t rows = 97;
  int64_t columns = 0;  // 0: self mode
  int64_t dim = 8;
  Labels labels = Labels::few_classes;
  Layout layout = Layout::contiguous;
  Formula formula{};
  bool normalize = true;
  double skip_below = 0;
  Upstream upstream = Upstream::everywhere;
  double upstream_scale = 1;
  bool both_sides = false;
  bool own_copies = false;  // of some rows among the columns, wherever
  bool by_functions = false;

  bool self_mode() const { return columns == 0; }
};

Formula circle_formula(double gamma, bool detach_weights);
Formula unified_formula(double gamma);
// The formula with other numbers for positives.
Formula two_scales(Formula formula, double gamma_pos, double margin_pos);

std::string describe(const Case& asked);

// One set of embeddings, and the memory that it lies in.
struct Side {
  int64_t count, dim, row_stride, dim_stride, label_stride;
  Buffer memory;
  std::vector<int64_t> label_memory;

  double value(int64_t row, int64_t d) const {
    return memory.at(row * row_stride + d * dim_stride);
  }
  void set(int64_t row, int64_t d, double value) {
    memory.set(row * row_stride + d * dim_stride, value);
  }
  int64_t label(int64_t row) const { return label_memory[row * label_stride]; }
  Embeddings view() const;
};

struct Inputs {
  Case asked;
  Side rows, columns;  // in self mode the columns are empty
  Buffer grad_lse_pos, grad_lse_neg;
  std::vector<int64_t> own_columns;               // of each row, or empty
  std::shared_ptr<const OwnedFormula> functions;  // or null

  const Side& other_side() const { return asked.self_mode() ? rows : columns; }
  Problem problem(int64_t kept_tiles, int threads) const;
  int64_t anchors() const { return rows.count + (asked.both_sides ? columns.count : 0); }
  // Whether a column is a row itself or its own copy.
  bool is_own(int64_t row, int64_t column) const;
  int64_t tiles() const;
};

// The same inputs for the same case, on every machine.
Inputs make_inputs(const Case& asked);

}  // namespace circle_kernels
