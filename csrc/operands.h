// What products are made of: both sides of a problem in panels, and one way to multiply them
// whatever the operands' type.
#pragma once

#include "bfloat_operands.h"
#include "memory.h"
#include "product.h"
#include "tile_product.h"
#include "tiles.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace circle_kernels {
namespace {

int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <class T>
T* allocate(Arena& arena, int64_t count) {
  return static_cast<T*>(arena.allocate(static_cast<std::size_t>(count) * sizeof(T)));
}

template <class T>
Panels<T> make_panels(const Embeddings& side, const Ordering& ordering, int64_t held,
                      Arena& arena) {
  const int64_t padded = panels_of(side.count) * PANEL;
  const int64_t* order = ordering.order.empty() ? nullptr : ordering.order.data();
  Panels<T> panels{side.count, side.dim, order, nullptr, nullptr, nullptr};
  panels.values = allocate<T>(arena, held * PANEL * side.dim);
  panels.divisors = allocate<T>(arena, padded);
  if constexpr (sizeof(Int<T>) == sizeof(int32_t)) {
    panels.class_ids = ordering.class_ids.data();
  } else {
    Int<T>* class_ids = allocate<Int<T>>(arena, padded);
    for (int64_t row = 0; row < padded; ++row) class_ids[row] = ordering.class_ids[row];
    panels.class_ids = class_ids;
  }
  return panels;
}

template <class T>
void pack(const Problem& problem, const Embeddings& side, int64_t index, int64_t row,
          Panels<T>& panels) {
  if constexpr (sizeof(T) == sizeof(double)) {
    pack_rows<T, double>(side, problem.normalize, index, row, panels);
  } else if (problem.scalar == Scalar::float32) {
    pack_rows<T, float>(side, problem.normalize, index, row, panels);
  } else if (problem.scalar == Scalar::float16) {
    pack_rows<T, Half>(side, problem.normalize, index, row, panels);
  } else {
    pack_rows<T, BFloat>(side, problem.normalize, index, row, panels);
  }
}

template <class T>
void unpack(const Problem& problem, const Panels<T>& panels, int64_t index, int64_t row,
            T* gradient, double unit, void* output) {
  if constexpr (sizeof(T) == sizeof(double)) {
    unpack_gradient(panels, problem.normalize, index, row, gradient, unit,
                    static_cast<double*>(output));
  } else if (problem.scalar == Scalar::float32) {
    unpack_gradient(panels, problem.normalize, index, row, gradient, unit,
                    static_cast<float*>(output));
  } else if (problem.scalar == Scalar::float16) {
    unpack_gradient(panels, problem.normalize, index, row, gradient, unit,
                    static_cast<Half*>(output));
  } else {
    unpack_gradient(panels, problem.normalize, index, row, gradient, unit,
                    static_cast<BFloat*>(output));
  }
}

BFloatPanels make_bfloat_panels(const Problem& problem, const Embeddings& side, int64_t panels,
                                Arena& arena) {
  BFloatPanels operands{};
  operands.words = operand_words(side.dim, problem.bfloat_terms);
  operands.rows = allocate<BFloatPair>(arena, panels * operands.words);
  operands.columns = allocate<BFloatPair>(arena, panels * operands.words);
  operands.gradient = allocate<BFloatPair>(arena, panels * operands.words);
  if (problem.scalar == Scalar::bfloat16) operands.scales = allocate<float>(arena, panels * PANEL);
  return operands;
}

enum class Side { rows, columns };

// Of one thread: a tile, and one as weights of bfloat16 products.
template <class T>
struct ProductScratch {
  alignas(64) T tile[PANEL * PANEL];
  alignas(64) T gradient[PANEL * PANEL];
  alignas(64) BFloatPair weights[3 * PANEL / 2 * PANEL];
};

// Both sides of a problem in panels, in self mode one side twice, and the products over them.
//
// References are packed when their chunk of tiles comes, into memory for one chunk's: there may be
// millions of them.
template <class T>
struct Operands {
  const Problem& problem;
  const BFloatProducts* products;  // null where products are of type T
  Panels<T> rows, columns;
  BFloatPanels bfloat_rows{}, bfloat_columns{};

  // Chunks have at most `columns_held` panels of columns.
  Operands(const Problem& the_problem, const Classes& classes, const BFloatProducts* the_products,
           int64_t columns_held, Arena& arena)
      : problem(the_problem),
        products(sizeof(T) == sizeof(float) && problem.bfloat_terms > 0 ? the_products : nullptr),
        rows(make_panels<T>(problem.rows, classes.rows, panels_of(problem.rows.count), arena)),
        columns(problem.self_mode
                    ? rows
                    : make_panels<T>(problem.columns, classes.columns, columns_held, arena)) {
    if (products == nullptr) return;
    bfloat_rows = make_bfloat_panels(problem, problem.rows, rows.panels(), arena);
    bfloat_columns = problem.self_mode
                         ? bfloat_rows
                         : make_bfloat_panels(problem, problem.columns, columns_held, arena);
  }

  Tile<T> tile(int64_t row, int64_t column) const {
    const uint8_t* listed =
        problem.listed == nullptr
            ? nullptr
            : problem.listed + row * PANEL * problem.listed_stride + column * PANEL;
    return {rows, columns, row, column, problem.self_mode, listed, problem.listed_stride};
  }

  // Values of d that a panel of the gradient has room for.
  int64_t gradient_dim() const { return products != nullptr ? padded_dim(rows.dim) : rows.dim; }

  // Called by every thread before and after its products.
  void begin() const {
    if (products != nullptr) products->begin();
  }
  void end() const {
    if (products != nullptr) products->end();
  }

  // Called by every thread of a parallel region.
  void pack_rows() { pack_side(problem.rows, 0, rows.panels(), rows, bfloat_rows); }

  // Called by every thread before it looks at a chunk: packs the columns of a chunk that has others
  // than the one before.
  void pack_columns(const Chunk& chunk) {
    if (problem.self_mode || chunk.first_row > 0) return;
#pragma omp single
    columns.first = bfloat_columns.first = chunk.first_column;
    pack_side(problem.columns, chunk.first_column, chunk.last_column, columns, bfloat_columns);
  }

  // The similarities of one tile.
  void multiply(const Tile<T>& tile, T* similarities) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (products != nullptr) {
        products->similarities(bfloat_rows.operand(tile.row), bfloat_columns.operand(tile.column),
                               rows.dim, problem.bfloat_terms, similarities);
        if (bfloat_rows.scales != nullptr) {
          scale_tile(bfloat_rows.panel_scales(tile.row), bfloat_columns.panel_scales(tile.column),
                     similarities);
        }
        return;
      }
    }
    similarity_tile(rows.panel(tile.row), columns.panel(tile.column), rows.dim, tile.live_rows(),
                    tile.live_columns(), tile.on_diagonal(), similarities);
  }

  // The similarities of one tile, and how far they range.
  TileRanges<T> multiply_with_ranges(const Tile<T>& tile, T* similarities) const {
    const bool mixed = !tile.only_negatives();
    if (products == nullptr && !mixed && tile.live_rows() == PANEL) {
      RangeOf<T> seen;  // a pass over the tile less
      similarity_tile(rows.panel(tile.row), columns.panel(tile.column), rows.dim, PANEL, PANEL,
                      false, similarities, seen);
      return {Range<T>::none(), seen.range()};
    }
    multiply(tile, similarities);
    return ranges_of(tile, similarities);
  }

  // Adds what one tile of G has for one panel of the gradient, for a range of d.
  //
  // The other side's panel is that of the tile's columns when the output is one of the tile's rows,
  // and the other way round; `transposed` says which.
  void accumulate(Side side, int64_t panel, const T* tile, const TileShare& share, bool transposed,
                  int64_t live_outputs, const DimRange& range, ProductScratch<T>& scratch,
                  const T* upcoming, T* gradient) const {
    const Panels<T>& others = side == Side::rows ? rows : columns;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (products != nullptr) {
        const BFloatPanels& operands = side == Side::rows ? bfloat_rows : bfloat_columns;
        if (transposed) transpose_tile(tile, scratch.tile);
        pack_weights(transposed ? scratch.tile : tile, operands.panel_scales(panel),
                     problem.bfloat_terms, scratch.weights);
        products->accumulate(operands.operand(panel), scratch.weights, problem.bfloat_terms,
                             range.first, range.last, gradient);
        return;
      }
    }
    accumulate_tile(others.panel(panel), tile, share, transposed, others.live(panel), live_outputs,
                    range, scratch.tile, upcoming, gradient);
  }

 private:
  void pack_side(const Embeddings& side, int64_t begin, int64_t end, Panels<T>& panels,
                 BFloatPanels& operands) {
    constexpr int64_t PARTS = PANEL / PACKED_ROWS;
#pragma omp for schedule(dynamic)
    for (int64_t task = begin * PARTS; task < end * PARTS; ++task) {
      pack(problem, side, task / PARTS, task % PARTS * PACKED_ROWS, panels);
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      if (products == nullptr) return;
#pragma omp for schedule(dynamic)
      for (int64_t index = begin; index < end; ++index) {
        pack_operand(panels.panel(index), panels.divisors + index * PANEL, side.dim,
                     problem.bfloat_terms, index, operands);
      }
    }
  }
};

}  // namespace
}  // namespace circle_kernels
