// The gradients of both scales' logarithms, from one more walk over all tiles: what a learned gamma
// takes.
#pragma once

#include "kernels/backward/scale_sums.h"
#include "kernels/tiles/chunks.h"
#include "kernels/tiles/deep.h"

namespace circle_kernels {
namespace {

// Panels of a chunk's edge.
constexpr int64_t SCALE_CHUNK = 16;

template <class T, class Logits>
class ScalePass {
 public:
  ScalePass(const Problem& problem, const Classes& classes, const BFloatProducts* products,
            const Logits& logits, Arena& arena, const BackwardInput& input)
      : problem_(problem),
        operands_(problem, classes, products,
                  smaller(SCALE_CHUNK, panels_of(problem.columns.count)), arena),
        deep_products_(operands_, problem.threads, arena),
        saved_(problem, static_cast<T*>(const_cast<void*>(input.saved))),
        logits_(logits),
        nats_(nats_per_logit(logits, problem.formula)),
        statistics_(make_statistics(operands_, saved_, input, nats_, arena)),
        logit_size_(logit_scratch_size(logits)) {
    sums_ = allocate<ScaleSums>(arena, SCALE_CHUNK * SCALE_CHUNK);
    similarities_ = allocate<T>(arena, problem.threads * PANEL * PANEL);
    logit_scratch_ = allocate<T>(arena, problem.threads * logit_size_);
  }

  // False where it was interrupted.
  bool run(T* gradients) {  // (2,) of positives and of negatives
    ScaleSums total{0, 0};
#pragma omp parallel num_threads(problem_.threads)
    {
      operands_.begin();
      operands_.pack_rows();
      for_each_chunk(operands_.rows.panels(), operands_.columns.panels(), SCALE_CHUNK, SCALE_CHUNK,
                     problem_.self_mode, [&](const Chunk& chunk) {
                       if (!operands_.ended()) add_chunk(chunk, total);
                     });
      operands_.end();
    }
    if (operands_.end_wanted()) return false;
    // Gradients have gamma in them, which logits have as well.
    const Formula& formula = problem_.formula;
    const double unit = statistics_.gradient_unit;
    gradients[0] = static_cast<T>(total.positive / formula.gamma_pos * nats_.positive * unit);
    gradients[1] = static_cast<T>(total.negative / formula.gamma_neg * nats_.negative * unit);
    return true;
  }

 private:
  // Sums of tiles are added in an order that does not depend on the threads.
  void add_chunk(const Chunk& chunk, ScaleSums& total) {
    operands_.pack_columns(chunk);
    if (operands_.deep) deep_products_.multiply();
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < chunk.size(); ++index) {
      const int64_t row = chunk.row(index), column = chunk.column(index);
      ScaleSums& sums = sums_[chunk.slot(row, column)];
      sums = {0, 0};
      if (chunk.visits(row, column) && !operands_.interrupted()) sums = sums_of(row, column);
    }
#pragma omp single
    for (int64_t index = 0; index < chunk.size(); ++index) {
      total.positive += sums_[index].positive;
      total.negative += sums_[index].negative;
    }
    operands_.agree();
#pragma omp barrier
  }

  ScaleSums sums_of(int64_t row, int64_t column) const {
    const Tile<T> tile = operands_.tile(row, column);
    T* similarities = similarities_ + thread_index() * PANEL * PANEL;
    T* of_logits = logit_scratch_ + thread_index() * logit_size_;
    const TileRanges<T> ranges = operands_.multiply_with_ranges(tile, similarities);
    const auto logits = logits_of_tile(logits_, tile, similarities, ranges, of_logits);
    const auto run = [&](auto body) {
      return body(tile, similarities, logits.of_pair, statistics_);
    };
    using OfPair = std::decay_t<decltype(logits.of_pair)>;
    // A tile on the diagonal has each pair twice, in either order.
    const bool columns_too = statistics_.columns_too && !tile.on_diagonal();
    if (tile.listed != nullptr) {
      return columns_too ? run(scale_sums<T, Pairs::listed, true, OfPair>)
                         : run(scale_sums<T, Pairs::listed, false, OfPair>);
    }
    return columns_too ? run(scale_sums<T, Pairs::mixed, true, OfPair>)
                       : run(scale_sums<T, Pairs::mixed, false, OfPair>);
  }

  const Problem& problem_;
  Operands<T> operands_;
  DeepProducts<T> deep_products_;
  const Saved<T> saved_;
  const Logits& logits_;
  const Nats nats_;
  const Statistics<T> statistics_;
  const int64_t logit_size_;
  ScaleSums* sums_;   // (chunk's slots,)
  T* similarities_;   // (threads, PANEL, PANEL)
  T* logit_scratch_;  // (threads, logit_scratch_size())
};

}  // namespace
}  // namespace circle_kernels
