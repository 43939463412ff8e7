// Few embeddings of many dimensions (is_deep), a window of the depth at a time.
//
// A window is in panels as long as it is needed, in memory of the thread that needs it, and is
// packed again for every use: once for the similarities, twice for gradients, since the projection
// of normalised embeddings has to know the whole gradient before the first value of it goes out.
#pragma once

#include "kernels/tiles/operands.h"

namespace circle_kernels {
namespace {

constexpr int64_t WINDOW = 512;  // values of d

// One thread's view of a problem's operands: some values of d of all of them.
template <class T>
class Window {
 public:
  static constexpr int64_t PANEL_SIZE = WINDOW * PANEL;

  // Numbers that it holds.
  static int64_t size(const Operands<T>& operands) {
    return (operands.rows.panels() + operands.columns.panels()) * PANEL_SIZE;
  }

  Window(const Operands<T>& all, T* memory) : operands_(all) {
    std::memset(memory, 0, size(all) * sizeof(T));  // padding stays so
    operands_.similarities = nullptr;
    operands_.rows.values = memory;
    operands_.rows.depth = WINDOW;
    if (all.problem.self_mode) {
      operands_.columns = operands_.rows;
    } else {
      operands_.columns.values = memory + all.rows.panels() * PANEL_SIZE;
      operands_.columns.depth = WINDOW;
    }
  }

  const Operands<T>& operands() const { return operands_; }
  int64_t depth() const { return depth_; }

  void move_to(int64_t first_dim) {
    const Problem& problem = operands_.problem;
    const int64_t rest = problem.rows.dim - first_dim;
    depth_ = rest < WINDOW ? rest : WINDOW;
    operands_.rows.first_dim = operands_.columns.first_dim = first_dim;
    pack(problem.rows, operands_.rows);
    if (!problem.self_mode) pack(problem.columns, operands_.columns);
  }

 private:
  void pack(const Embeddings& side, const Panels<T>& panels) const {
    for (int64_t index = 0; index < panels.panels(); ++index) {
      // Products go through the whole window.
      T* rest = panels.panel(index) + depth_ * PANEL;
      std::memset(rest, 0, (WINDOW - depth_) * PANEL * sizeof(T));
      for (int64_t row = 0; row < panels.live(index); row += PACKED_ROWS) {
        with_scalar<T>(operands_.problem, [&](auto zero) {
          pack_rows<T, decltype(zero)>(side, index, row, depth_, panels);
        });
      }
    }
  }

  Operands<T> operands_;
  int64_t depth_ = 0;
};

// What passes do with a deep problem in place of packing all of it. Every method is called by every
// thread of a parallel region.
template <class T>
class DeepProducts {
 public:
  // Without memory where the problem is not deep.
  DeepProducts(const Operands<T>& operands, int threads, Arena& arena) : operands_(operands) {
    if (!operands.deep) return;
    tiles_ = operands.rows.panels() * operands.columns.panels();
    groups_ = (operands.rows.panels() + operands.columns.panels()) * GROUPS;
    scratch_size_ = (operands.rows.panels() + operands.columns.panels()) * Window<T>::PANEL_SIZE;
    windows_ = allocate<T>(arena, threads * Window<T>::size(operands));
    scratch_ = allocate<T>(arena, threads * scratch_size_);
    sums_ = allocate<T>(arena, PARTS * tiles_ * TILE);
    projections_ = allocate<Projection<T>>(arena, PARTS * groups_);
  }

  // Fills operands.similarities.
  void multiply() {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
      std::memset(sums_ + part * tiles_ * TILE, 0, tiles_ * TILE * sizeof(T));
    }
    for_each_window([&](int64_t part, const Operands<T>& operands, int64_t) {
      T* tile = scratch_ + thread_index() * scratch_size_;
      for (int64_t index = 0; index < tiles_; ++index) {
        const int64_t columns = operands.columns.panels();
        operands.multiply(operands.tile(index / columns, index % columns), tile);
        add(tile, sums_ + (part * tiles_ + index) * TILE);
      }
    });
#pragma omp for schedule(static)
    for (int64_t index = 0; index < tiles_; ++index) {
      T* total = operands_.similarities + index * TILE;
      std::memset(total, 0, TILE * sizeof(T));
      for (int64_t part = 0; part < PARTS; ++part) {
        add(sums_ + (part * tiles_ + index) * TILE, total);
      }
    }
  }

  // Computes gradients to their end. `accumulate(operands, side, gradient)` adds to a window of one
  // side's gradient, (panels, WINDOW, PANEL), what the operands there give, in units of
  // `gradient_unit`.
  template <class Accumulate>
  void unpack(const Gradients& gradients, double gradient_unit, Accumulate accumulate) {
    const bool normalize = operands_.problem.normalize;
    if (normalize) {
#pragma omp for schedule(static)
      for (int64_t place = 0; place < PARTS * groups_; ++place) projections_[place] = {};
      for_each_output(gradients, accumulate,
                      [&](int64_t part, int64_t place, const Panels<T>& panels, int64_t index,
                          int64_t row, int64_t depth, const T* gradient, void*) {
                        projections_[part * groups_ + place].add(panels.panel(index) + row,
                                                                 gradient + row, depth);
                      });
#pragma omp for schedule(static)
      for (int64_t place = 0; place < groups_; ++place) {
        for (int64_t part = 1; part < PARTS; ++part) {
          projections_[place].add(projections_[part * groups_ + place]);
        }
        const bool is_row_group = place < operands_.rows.panels() * GROUPS;
        const int64_t group = is_row_group ? place : place - operands_.rows.panels() * GROUPS;
        const Panels<T>& panels = is_row_group ? operands_.rows : operands_.columns;
        projections_[place].finish(panels.divisors + group * LANES<T>, gradient_unit);
      }
    }
    for_each_output(gradients, accumulate,
                    [&](int64_t, int64_t place, const Panels<T>& panels, int64_t index, int64_t row,
                        int64_t depth, const T* gradient, void* output) {
                      with_scalar<T>(operands_.problem, [&](auto zero) {
                        unpack_rows(panels, normalize, projections_[place], index, row, depth,
                                    gradient, gradient_unit, static_cast<decltype(zero)*>(output));
                      });
                    });
  }

 private:
  // Parts of the depth, each one thread's: their number does not depend on that of the threads, and
  // so neither does the order of sums.
  static constexpr int64_t PARTS = 16;
  static constexpr int64_t TILE = PANEL * PANEL;
  static constexpr int64_t GROUPS = PANEL / LANES<T>;  // of rows that are unpacked together

  static void add(const T* values, T* sums) {
    for (int64_t at = 0; at < TILE; at += LANES<T>) {
      store(sums + at, load(sums + at) + load(values + at));
    }
  }

  // Calls `visit` with each window's part, operands and depth.
  template <class Visit>
  void for_each_window(Visit visit) {
    const int64_t windows = (operands_.rows.dim + WINDOW - 1) / WINDOW;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
      Window<T> window(operands_, windows_ + thread_index() * Window<T>::size(operands_));
      for (int64_t at = windows * part / PARTS; at < windows * (part + 1) / PARTS; ++at) {
        if (operands_.interrupted()) break;
        window.move_to(at * WINDOW);
        visit(part, window.operands(), window.depth());
      }
    }
  }

  // Calls `use` with each group of rows of each window of each gradient that is wanted: its part,
  // its place among the projections, its panel, and the panel's gradient.
  template <class Accumulate, class Use>
  void for_each_output(const Gradients& gradients, Accumulate accumulate, Use use) {
    for_each_window([&](int64_t part, const Operands<T>& operands, int64_t depth) {
      T* gradient = scratch_ + thread_index() * scratch_size_;
      for (const Side side : {Side::rows, Side::columns}) {
        void* output = side == Side::rows ? gradients.rows : gradients.columns;
        if (output == nullptr) continue;
        const Panels<T>& panels = side == Side::rows ? operands.rows : operands.columns;
        const int64_t first_place = side == Side::rows ? 0 : operands.rows.panels() * GROUPS;
        std::memset(gradient, 0, panels.panels() * Window<T>::PANEL_SIZE * sizeof(T));
        accumulate(operands, side, gradient);
        for (int64_t index = 0; index < panels.panels(); ++index) {
          for (int64_t row = 0; row < panels.live(index); row += LANES<T>) {
            use(part, first_place + index * GROUPS + row / LANES<T>, panels, index, row, depth,
                gradient + index * Window<T>::PANEL_SIZE, output);
          }
        }
      }
    });
  }

  const Operands<T>& operands_;
  int64_t tiles_ = 0, groups_ = 0, scratch_size_ = 0;
  T* windows_ = nullptr;                  // (threads, Window::size())
  T* scratch_ = nullptr;                  // (threads, scratch_size_) a tile, or gradients
  T* sums_ = nullptr;                     // (PARTS, tiles, PANEL, PANEL)
  Projection<T>* projections_ = nullptr;  // (PARTS, groups)
};

}  // namespace
}  // namespace circle_kernels
