// What products are made of: both sides of a problem in panels, and one way to multiply them
// whatever the operands' type.
#pragma once

#include "common/memory.h"
#include "kernels/products/bfloat_operands.h"
#include "kernels/products/gradient_product.h"
#include "kernels/products/register_product.h"
#include "kernels/tiles/chunks.h"
#include "kernels/tiles/own_copies.h"
#include "kernels/tiles/threads.h"
#include "kernels/tiles/tiles.h"

namespace circle_kernels {
namespace {

template <class T>
Panels<T> make_panels(const Embeddings& side, const Ordering& ordering, int64_t held, int64_t depth,
                      Arena& arena) {
  const int64_t padded = panels_of(side.count) * PANEL;
  const int64_t* order = ordering.order.empty() ? nullptr : ordering.order.data();
  Panels<T> panels{side.count, side.dim, order, nullptr, nullptr, nullptr, depth};
  panels.values = allocate<T>(arena, held * PANEL * depth);
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

// Calls `run` with a number of the type that embeddings are given in.
template <class T, class Run>
void with_scalar(const Problem& problem, Run run) {
  if constexpr (sizeof(T) == sizeof(double)) {
    run(double{});
  } else if (problem.scalar == Scalar::float32) {
    run(float{});
  } else if (problem.scalar == Scalar::float16) {
    run(Half{});
  } else {
    run(BFloat{});
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

// What the threads of a pass know of its end before it is done.
struct Ending {
  bool wanted;  // set by the calling thread at any time
  bool agreed;  // the same between two barriers
};

// Whether panels of a problem's few embeddings would be to a third or more padding, and their
// dimensions so many that this counts: then they are held a window of the depth at a time (deep.h).
inline bool is_deep(const Problem& problem) {
  constexpr int64_t SHALLOW = 8192;
  if (problem.rows.dim <= SHALLOW) return false;
  const int64_t columns = problem.self_mode ? 0 : problem.columns.count;
  const int64_t panels = panels_of(problem.rows.count) + panels_of(columns);
  return 2 * panels * PANEL >= 3 * (problem.rows.count + columns);
}

// Both sides of a problem in panels, in self mode one side twice, and the products over them.
//
// References are packed when their chunk of tiles comes, into memory for one chunk's: there may be
// millions of them.
template <class T>
struct Operands {
  const Problem& problem;
  const bool deep;                 // panels hold nothing; `similarities` holds all tiles
  const BFloatProducts* products;  // null where products are of type T
  Panels<T> rows, columns;
  BFloatPanels bfloat_rows{}, bfloat_columns{};
  T* similarities = nullptr;    // (tiles, PANEL, PANEL), row by row
  const Int<T>* own = nullptr;  // own_places()
  Ending* ending;

  // Chunks have at most `columns_held` panels of columns.
  Operands(const Problem& the_problem, const Classes& classes, const BFloatProducts* the_products,
           int64_t columns_held, Arena& arena)
      : problem(the_problem),
        deep(is_deep(problem)),
        products(sizeof(T) == sizeof(float) && problem.bfloat_terms > 0 && !deep ? the_products
                                                                                 : nullptr),
        rows(make_panels<T>(problem.rows, classes.rows, panels_of(problem.rows.count),
                            deep ? 0 : problem.rows.dim, arena)),
        columns(problem.self_mode ? rows
                                  : make_panels<T>(problem.columns, classes.columns, columns_held,
                                                   deep ? 0 : problem.rows.dim, arena)),
        ending(allocate<Ending>(arena, 1)) {
    *ending = {false, false};
    own = own_places(problem, rows, columns, arena);
    if (deep) similarities = allocate<T>(arena, rows.panels() * columns.panels() * PANEL * PANEL);
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
    return {rows,
            columns,
            row,
            column,
            problem.self_mode,
            listed,
            problem.listed_stride,
            own_in_tile(own, problem.self_mode, row, column)};
  }

  // Values of d that a panel of the gradient has room for.
  int64_t gradient_dim() const { return products != nullptr ? padded_dim(rows.depth) : rows.depth; }

  // Called by every thread before and after its products.
  void begin() const {
    if (products != nullptr) products->begin();
  }
  void end() const {
    if (products != nullptr) products->end();
  }

  // Whether the caller has asked for an end, and pieces of work are to be left out. Called by every
  // thread before each of them.
  bool interrupted() const {
    if (problem.interrupted == nullptr) return false;
    if (thread_index() == 0 && !ending->wanted) {
      const bool now = problem.interrupted();
      // Whoever was asked may have used AMX for something else.
      begin();
      if (now) __atomic_store_n(&ending->wanted, true, __ATOMIC_RELAXED);
    }
    return end_wanted();
  }
  // The same without asking.
  bool end_wanted() const { return __atomic_load_n(&ending->wanted, __ATOMIC_RELAXED); }
  // Called by every thread between two barriers; before the first and after the second one every
  // thread is told the same by ended().
  void agree() const {
    if (thread_index() == 0) ending->agreed = ending->wanted;
  }
  bool ended() const { return ending->agreed; }

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
  void multiply(const Tile<T>& tile, T* result) const {
    if (similarities != nullptr) {
      const T* known = similarities + (tile.row * columns.panels() + tile.column) * PANEL * PANEL;
      std::memcpy(result, known, PANEL * PANEL * sizeof(T));
      return;
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      if (products != nullptr) {
        products->similarities(bfloat_rows.operand(tile.row), bfloat_columns.operand(tile.column),
                               rows.dim, problem.bfloat_terms, result);
        if (bfloat_rows.scales != nullptr) {
          scale_tile(bfloat_rows.panel_scales(tile.row), bfloat_columns.panel_scales(tile.column),
                     result);
        }
        return;
      }
    }
    similarity_tile(rows.panel(tile.row), columns.panel(tile.column), rows.depth, tile.live_rows(),
                    tile.live_columns(), tile.on_diagonal(), result);
  }

  // The similarities of one tile, and how far they range.
  TileRanges<T> multiply_with_ranges(const Tile<T>& tile, T* result) const {
    const bool mixed = !tile.only_negatives();
    if (products == nullptr && similarities == nullptr && !mixed && tile.live_rows() == PANEL) {
      RangeOf<T> seen;  // a pass over the tile less
      similarity_tile(rows.panel(tile.row), columns.panel(tile.column), rows.depth, PANEL, PANEL,
                      false, result, seen);
      return {Range<T>::none(), seen.range()};
    }
    multiply(tile, result);
    return ranges_of(tile, result);
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
      if (interrupted()) continue;
      const int64_t index = task / PARTS, row = task % PARTS * PACKED_ROWS;
      with_scalar<T>(problem, [&](auto zero) {
        using S = decltype(zero);
        measure_rows<T, S>(side, problem.normalize, index, row, panels);
        circle_kernels::pack_rows<T, S>(side, index, row, panels.depth, panels);
      });
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      if (products == nullptr) return;
#pragma omp for schedule(dynamic)
      for (int64_t index = begin; index < end; ++index) {
        if (interrupted()) continue;
        pack_operand(panels.panel(index), panels.divisors + index * PANEL, side.dim,
                     problem.bfloat_terms, index, operands);
      }
    }
  }
};

}  // namespace
}  // namespace circle_kernels
