// The backward pass over all tiles: what each thread does when. tile_gradient.h and kept_weights.h
// have what is done to a tile.
//
// A chunk of tiles at a time, G = dL/ds is computed into a bounded buffer, or G + G^T where columns
// count pairs, too: s_ij and s_ji are then one number. Then each panel of the gradient takes what
// the chunk has for it: nobody else writes that panel, so there are no atomics, and the order of
// its sums is fixed.
#pragma once

#include "kernels/backward/kept_weights.h"
#include "kernels/backward/statistics.h"
#include "kernels/backward/tile_gradient.h"
#include "kernels/backward/tile_needs.h"
#include "kernels/tiles/chunks.h"
#include "kernels/tiles/deep.h"
#include "kernels/tiles/operands.h"
#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

// Panels of a chunk's edge: its tiles of G (36 KB each) stay in the last-level cache.
constexpr int64_t BACKWARD_CHUNK = 16;

// Panels of columns of a chunk. Where there are few rows, more of them: threads wait for one
// another between chunks. They and their gradient share the cache with G.
template <class T>
int64_t backward_columns(const Problem& problem) {
  if (problem.self_mode) return BACKWARD_CHUNK;
  constexpr int64_t CACHE_BYTES = 8 << 20, MOST = 48;
  const int64_t rows = smaller(BACKWARD_CHUNK, panels_of(problem.rows.count));
  const int64_t held = CACHE_BYTES / (problem.rows.dim * PANEL * static_cast<int64_t>(sizeof(T)));
  const int64_t columns = smaller(BACKWARD_CHUNK * BACKWARD_CHUNK / rows, smaller(MOST, held));
  return columns < BACKWARD_CHUNK ? BACKWARD_CHUNK : columns;
}

template <class T, class Logits>
class BackwardPass {
 public:
  BackwardPass(const Problem& problem, const Classes& classes, const BFloatProducts* products,
               const Logits& logits, Arena& arena, const BackwardInput& input,
               const Gradients& gradients)
      : problem_(problem),
        columns_of_chunk_(smaller(backward_columns<T>(problem), panels_of(problem.columns.count))),
        operands_(problem, classes, products, columns_of_chunk_, arena),
        deep_products_(operands_, problem.threads, arena),
        rows_(operands_.rows),
        columns_(operands_.columns),
        saved_(problem, static_cast<T*>(const_cast<void*>(input.saved))),
        logits_(logits),
        statistics_(make_statistics(operands_, saved_, input,
                                    nats_per_logit(logits, problem.formula), arena)),
        needs_(operands_, saved_, statistics_),
        gradients_(gradients),
        panel_size_(operands_.gradient_dim() * PANEL) {
    const int64_t slots = smaller(BACKWARD_CHUNK, rows_.panels()) * columns_of_chunk_;
    tiles_ = allocate<T>(arena, slots * PANEL * PANEL);
    shares_ = allocate<TileShare>(arena, slots);
    scratch_ = allocate<ProductScratch<T>>(arena, problem.threads);
    logit_scratch_ = allocate<T>(arena, problem.threads * logit_scratch_size(logits));
    if (operands_.deep) return;
    if (gradients.rows != nullptr) row_gradient_ = allocate<T>(arena, rows_.panels() * panel_size_);
    if (gradients.columns != nullptr) {
      column_gradient_ = allocate<T>(arena, columns_of_chunk_ * panel_size_);
    }
  }

  // False where it was interrupted.
  bool run() {
#pragma omp parallel num_threads(problem_.threads)
    {
      operands_.begin();
      if (row_gradient_ != nullptr) clear(rows_.panels(), row_gradient_);
      operands_.pack_rows();
      for_each_chunk(rows_.panels(), columns_.panels(), BACKWARD_CHUNK, columns_of_chunk_,
                     problem_.self_mode, [&](const Chunk& chunk) {
                       if (!operands_.ended()) run_chunk(chunk);
                     });
      if (row_gradient_ != nullptr) {
        unpack_all(rows_, 0, rows_.panels(), row_gradient_, gradients_.rows);
      }
      operands_.end();
    }
    return !operands_.end_wanted();
  }

 private:
  void clear(int64_t panels, T* gradient) const {
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < panels; ++panel) {
      std::memset(gradient + panel * panel_size_, 0, panel_size_ * sizeof(T));
    }
  }

  void run_chunk(const Chunk& chunk) {
    operands_.pack_columns(chunk);
    if (operands_.deep) {  // this chunk is the only one
      if (needs_.products()) deep_products_.multiply();
      compute_tiles(chunk);
      deep_products_.unpack(
          gradients_, statistics_.gradient_unit,
          [&](const Operands<T>& operands, Side side, T* gradient) {
            const int64_t outputs = (side == Side::rows ? rows_ : columns_).panels();
            accumulate_panels(chunk, operands, side, 0, outputs, {0, WINDOW}, gradient);
          });
      return;
    }
    const bool for_columns = column_gradient_ != nullptr;
    if (for_columns && chunk.first_row == 0) clear(chunk.columns(), column_gradient_);
    compute_tiles(chunk);
    accumulate(chunk);
    if (for_columns && chunk.last_row == rows_.panels()) {
      unpack_all(columns_, chunk.first_column, chunk.last_column, column_gradient_,
                 gradients_.columns);
    }
  }

  void compute_tiles(const Chunk& chunk) {
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < chunk.size(); ++index) {
      const int64_t row = chunk.row(index), column = chunk.column(index);
      if (!chunk.visits(row, column) || operands_.interrupted()) continue;
      const int64_t slot = chunk.slot(row, column);
      if (needs_.nothing(row, column)) {
        shares_[slot].any = false;
        continue;
      }
      if (needs_.weights(row, column)) {
        shares_[slot].any = shares_[slot].all = true;
        continue;
      }
      const Tile<T> tile = operands_.tile(row, column);
      const T* similarities = needs_.similarities(row, column);
      TileRanges<T> ranges;
      if (similarities != nullptr) {
        ranges = ranges_of(tile, similarities);
      } else {
        T* recomputed = scratch_[thread_index()].tile;
        ranges = operands_.multiply_with_ranges(tile, recomputed);
        similarities = recomputed;
      }
      T* of_logits = logit_scratch_ + thread_index() * logit_scratch_size(logits_);
      const auto logits = logits_of_tile(logits_, tile, similarities, ranges, of_logits);
      slopes_of_tile(logits_, tile, similarities, of_logits);
      compute_tile(tile, similarities, logits, slot);
    }
    operands_.agree();
  }

  template <class OfPair>
  void compute_tile(const Tile<T>& tile, const T* similarities, const TileLogits<T, OfPair>& logits,
                    int64_t slot) {
    const auto run = [&](auto body) {
      body(tile, similarities, logits, statistics_, needs_.negligible(),
           tiles_ + slot * PANEL * PANEL, shares_[slot]);
    };
    if (statistics_.columns_too) {
      needs_.skipping() ? run(tile_gradient<T, true, true, OfPair>)
                        : run(tile_gradient<T, true, false, OfPair>);
    } else {
      needs_.skipping() ? run(tile_gradient<T, false, true, OfPair>)
                        : run(tile_gradient<T, false, false, OfPair>);
    }
  }

  // A task is some panels of the gradient, or a part of one's values of d where there are few
  // panels for many threads.
  void accumulate(const Chunk& chunk) {
    // In self mode a chunk beside the diagonal serves its columns' panels as well.
    const bool other_side = problem_.self_mode ? row_gradient_ != nullptr && !chunk.on_diagonal
                                               : column_gradient_ != nullptr;
    const int64_t row_outputs = row_gradient_ != nullptr ? chunk.rows() : 0;
    const int64_t outputs = row_outputs + (other_side ? chunk.columns() : 0);
    const int64_t blocks = (rows_.dim + BFLOAT_DEPTH - 1) / BFLOAT_DEPTH;
    int64_t parts = 1;
    while (outputs * parts < 8 * problem_.threads && 2 * parts <= blocks && parts < 8) parts *= 2;
    const int64_t width = outputs_of_a_task(outputs);
    const int64_t row_tasks = (row_outputs + width - 1) / width;
    const int64_t tasks = row_tasks + (outputs - row_outputs + width - 1) / width;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks * parts; ++task) {
      const int64_t part = task % parts;
      const bool to_rows = task / parts < row_tasks;
      const int64_t place = (task / parts - (to_rows ? 0 : row_tasks)) * width;
      const int64_t first = blocks * part / parts * BFLOAT_DEPTH;
      const int64_t last = blocks * (part + 1) / parts * BFLOAT_DEPTH;
      const DimRange range{first, smaller(last, operands_.gradient_dim())};
      const int64_t begin = (to_rows ? chunk.first_row : chunk.first_column) + place;
      const int64_t end = smaller(begin + width, to_rows ? chunk.last_row : chunk.last_column);
      T* gradient = to_rows || problem_.self_mode ? row_gradient_ : column_gradient_;
      accumulate_panels(chunk, operands_, to_rows ? Side::rows : Side::columns, begin, end, range,
                        gradient);
    }
  }

  // Several outputs a task, where there are enough of them: the other side's panels are then read
  // once for all from the last-level cache. They and the outputs stay in the second level.
  int64_t outputs_of_a_task(int64_t outputs) const {
    constexpr int64_t CACHE_BYTES = 640 * 1024;
    const int64_t panel_bytes = panel_size_ * static_cast<int64_t>(sizeof(T));
    int64_t width = 4;
    while (width > 1 &&
           ((width + 1) * panel_bytes > CACHE_BYTES || outputs < 4 * width * problem_.threads)) {
      width /= 2;
    }
    return width;
  }

  // Where the tile of an output panel and one of the other side lies.
  struct Place {
    int64_t row, column;
    bool transposed;  // to be multiplied: the output is the tile's rows
  };

  Place place_of(const Chunk& chunk, Side side, int64_t output, int64_t other) const {
    // Below the diagonal the tile's mirror image was visited.
    const bool is_row = side == Side::rows && chunk.visits(output, other);
    return is_row ? Place{output, other, true} : Place{other, output, false};
  }

  // Adds what a chunk has for panels [begin, end) of the gradient of one side.
  void accumulate_panels(const Chunk& chunk, const Operands<T>& operands, Side side, int64_t begin,
                         int64_t end, const DimRange& range, T* gradients) {
    const bool to_rows = side == Side::rows;
    const int64_t panel_size = operands.gradient_dim() * PANEL;
    const int64_t first = to_rows ? chunk.first_column : chunk.first_row;
    const int64_t last = to_rows ? chunk.last_column : chunk.last_row;
    ProductScratch<T>& scratch = scratch_[thread_index()];
    for (int64_t other = first; other < last; ++other) {
      if (operands.interrupted()) return;
      for (int64_t output = begin; output < end; ++output) {
        const int64_t first_held = to_rows ? 0 : operands.columns.first;
        T* gradient = gradients + (output - first_held) * panel_size;
        const int64_t live = (to_rows ? rows_ : columns_).live(output);
        const Place place = place_of(chunk, side, output, other);
        const int64_t slot = chunk.slot(place.row, place.column);
        const TileShare& share = shares_[slot];
        if (!share.any) continue;
        const T* tile = tiles_ + slot * PANEL * PANEL;
        bool transposed = place.transposed;
        // Kept weights are scaled here, into the caches of who multiplies them.
        if (needs_.weights(place.row, place.column)) {
          const int64_t index = needs_.index_of(place.row, place.column);
          scale_weights(operands_.tile(place.row, place.column), saved_.tile(index), statistics_,
                        saved_.shifts[index], transposed, scratch.gradient);
          tile = scratch.gradient;
          transposed = false;
        }
        const T* upcoming = nullptr;
        const bool more = output + 1 < end;
        if (more || other + 1 < last) {
          const Place next = more ? place_of(chunk, side, output + 1, other)
                                  : place_of(chunk, side, begin, other + 1);
          upcoming = saved_.tile(needs_.index_of(next.row, next.column));
        }
        operands.accumulate(to_rows ? Side::columns : Side::rows, other, tile, share, transposed,
                            live, range, scratch, upcoming, gradient);
      }
    }
  }

  // Panels [begin, end) of one side, whose gradient begins with the first of them.
  void unpack_all(const Panels<T>& side, int64_t begin, int64_t end, T* gradient,
                  void* output) const {
    constexpr int64_t PARTS = PANEL / PACKED_ROWS;
#pragma omp for schedule(dynamic)
    for (int64_t task = begin * PARTS; task < end * PARTS; ++task) {
      if (operands_.interrupted()) continue;
      const int64_t panel = task / PARTS, row = task % PARTS * PACKED_ROWS;
      with_scalar<T>(problem_, [&](auto zero) {
        unpack_gradient(side, problem_.normalize, panel, row,
                        gradient + (panel - begin) * panel_size_, statistics_.gradient_unit,
                        static_cast<decltype(zero)*>(output));
      });
    }
  }

  const Problem& problem_;
  const int64_t columns_of_chunk_;  // panels, at most
  Operands<T> operands_;
  DeepProducts<T> deep_products_;
  const Panels<T>&rows_, &columns_;
  const Saved<T> saved_;
  const Logits& logits_;
  const Statistics<T> statistics_;
  const TileNeeds<T> needs_;
  const Gradients gradients_;
  const int64_t panel_size_;  // of the gradient
  T* tiles_;                  // of G, one chunk
  TileShare* shares_;
  ProductScratch<T>* scratch_;    // (threads,)
  T* logit_scratch_;              // (threads, logit_scratch_size())
  T* row_gradient_ = nullptr;     // (panels, dim, PANEL)
  T* column_gradient_ = nullptr;  // (columns_of_chunk_, dim, PANEL)
};

}  // namespace
}  // namespace circle_kernels
