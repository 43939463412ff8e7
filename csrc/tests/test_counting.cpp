// Exact similarities and counts against integers: products of high and low parts summed without any
// rounding, at every level, with several threads, and where the caller asks for an end.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/support/check.h"
#include "tests/support/level_argument.h"

namespace circle_kernels {
namespace {

struct Matrix {
  int64_t count, dim;
  std::vector<double> values;

  const double* row(int64_t index) const { return values.data() + index * dim; }
};

int grid_bits(int64_t dim) {
  return 52 - static_cast<int>(std::ceil(std::log2(static_cast<double>(dim)) / 2));
}

// What embeddings are like.
enum class Kind { random, clusters, permuted, collapsed, zeros };
constexpr Kind KINDS[] = {Kind::random, Kind::clusters, Kind::permuted, Kind::collapsed,
                          Kind::zeros};

// Rows of norm 1, or of zeros, rounded to the grid.
Matrix make_matrix(Kind kind, int64_t count, int64_t dim, unsigned seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<double> center(dim);
  for (double& each : center) each = normal(engine);
  Matrix matrix{count, dim, std::vector<double>(count * dim)};
  const double step = std::ldexp(1.0, -grid_bits(dim));
  for (int64_t row = 0; row < count; ++row) {
    double* values = matrix.values.data() + row * dim;
    double squares = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double noise = normal(engine);
      values[d] = kind == Kind::clusters ? center[d] * static_cast<double>(row % 3 - 1) + noise / 4
                  : kind == Kind::collapsed ? center[d] * (1 + 1e-8 * noise)
                  : kind == Kind::permuted  ? center[(d + row) % dim]
                                            : noise;
      squares += values[d] * values[d];
    }
    const double norm = kind == Kind::zeros && row % 2 == 0 ? INFINITY : std::sqrt(squares);
    for (int64_t d = 0; d < dim; ++d) values[d] = std::round(values[d] / norm / step) * step;
  }
  return matrix;
}

// By integers, with the one rounding that the definition has.
double expected_similarity(const double* row, const double* column, int64_t dim) {
  const int bits = grid_bits(dim);
  const auto parts = [&](double value, int64_t& high, int64_t& low) {
    high = static_cast<int64_t>(std::nearbyint(std::ldexp(value, 26)));
    low =
        static_cast<int64_t>(std::ldexp(value - std::ldexp(static_cast<double>(high), -26), bits));
  };
  int64_t high_sum = 0, low_sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    int64_t high, low, high_too, low_too;
    parts(row[d], high, low);
    parts(column[d], high_too, low_too);
    high_sum += high * high_too;
    low_sum += high * low_too + low * high_too;
  }
  return std::ldexp(static_cast<double>(high_sum), -52) +
         std::ldexp(static_cast<double>(low_sum), -26 - bits);
}

struct Runs {
  std::vector<double> thresholds;
  std::vector<int64_t> offsets{0};
};

// Every other run's thresholds are similarities of its row, so that they are equal to some.
Runs make_runs(const std::vector<double>& similarities, int64_t rows, int64_t columns,
               int64_t size) {
  std::mt19937_64 engine(5);
  Runs runs;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t own = row % 7 == 6 ? 0 : size;
    for (int64_t place = 0; place < own; ++place) {
      const double found = similarities[row * columns + static_cast<int64_t>(engine() % columns)];
      runs.thresholds.push_back(row % 4 == 3 ? found * 1.0001 - 1e-7 : found);
    }
    std::sort(runs.thresholds.begin() + runs.offsets.back(), runs.thresholds.end());
    runs.offsets.push_back(static_cast<int64_t>(runs.thresholds.size()));
  }
  return runs;
}

struct Counts {
  std::vector<int64_t> at_least, above;

  bool operator==(const Counts& other) const {
    return at_least == other.at_least && above == other.above;
  }
};

Counts expected_counts(const std::vector<double>& similarities, int64_t columns, const Runs& runs) {
  Counts counts;
  for (std::size_t row = 0; row + 1 < runs.offsets.size(); ++row) {
    const double* own = similarities.data() + static_cast<int64_t>(row) * columns;
    for (int64_t place = runs.offsets[row]; place < runs.offsets[row + 1]; ++place) {
      const double threshold = runs.thresholds[place];
      counts.at_least.push_back(
          std::count_if(own, own + columns, [=](double each) { return each >= threshold; }));
      counts.above.push_back(
          std::count_if(own, own + columns, [=](double each) { return each > threshold; }));
    }
  }
  return counts;
}

Counts count_with(const Level& level, const ExactSides& sides, int64_t rows, int64_t columns,
                  const Runs& runs) {
  const std::vector<int64_t> never(runs.thresholds.size(), -12345);
  Counts counts{never, never};
  int64_t counted = 0;
  run_count_above(level, sides,
                  {rows, columns, runs.thresholds.data(), runs.offsets.data(),
                   counts.at_least.data(), counts.above.data(), &counted});
  CHECK(counted == rows * columns);
  return counts;
}

void check_counts(const Level& level, Kind kind, int64_t rows, int64_t columns, int64_t dim) {
  const bool self_mode = columns == 0;
  const Matrix of_rows = make_matrix(kind, rows, dim, 1);
  const Matrix of_columns = self_mode ? of_rows : make_matrix(kind, columns, dim, 2);
  const Matrix& others = self_mode ? of_rows : of_columns;

  const int64_t pairs = rows * others.count;
  std::vector<double> expected, similarities(pairs);
  std::vector<int64_t> row_indices, column_indices;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    row_indices.push_back(pair / others.count);
    column_indices.push_back(pair % others.count);
    expected.push_back(expected_similarity(of_rows.row(row_indices.back()),
                                           others.row(column_indices.back()), dim));
  }
  constexpr int THREADS[] = {1, 2, 3};
  const auto sides = [&](int threads) {
    return ExactSides{of_rows.row(0), others.row(0), dim, threads, nullptr};
  };
  const auto described = [&](const char* what, long long size, int threads) {
    std::printf("%s: kind %d, %lld x %lld x %lld, %lld thresholds, %d threads\n", what,
                static_cast<int>(kind), static_cast<long long>(rows),
                static_cast<long long>(columns), static_cast<long long>(dim), size, threads);
  };
  for (const int threads : THREADS) {
    similarities.assign(pairs, NAN);
    run_exact_similarities(level, sides(threads),
                           {row_indices.data(), column_indices.data(), pairs, similarities.data()});
    if (!CHECK(similarities == expected)) described("similarities", 0, threads);
  }
  for (const int64_t size : {0, 1, 3, 40, 300}) {
    const Runs runs = make_runs(expected, rows, others.count, size);
    const Counts wanted = expected_counts(expected, others.count, runs);
    for (const int threads : THREADS) {
      const Counts counts = count_with(level, sides(threads), rows, others.count, runs);
      if (!CHECK(counts == wanted)) described("counts", size, threads);
    }
  }
}

// Problem::interrupted is a plain function.
int64_t questions = 0, last_question = 0;

bool is_last() { return ++questions > last_question; }

void check_interrupted(const Level& level, int64_t columns, int threads) {
  constexpr int64_t ROWS = 7 * PANEL + 5, DIM = 30;
  const Matrix of_rows = make_matrix(Kind::random, ROWS, DIM, 1);
  const Matrix of_columns = make_matrix(Kind::random, columns, DIM, 2);
  const Matrix& others = columns == 0 ? of_rows : of_columns;
  const Runs runs = make_runs(std::vector<double>(ROWS * 10, 0.1), ROWS, 10, 2);
  ExactSides sides{of_rows.row(0), others.row(0), DIM, threads, nullptr};
  const Counts expected = count_with(level, sides, ROWS, others.count, runs);
  sides.interrupted = is_last;
  questions = 0;
  last_question = INT64_MAX;
  CHECK(count_with(level, sides, ROWS, others.count, runs) == expected);
  const int64_t all = questions;
  // The first of several threads asks for what it does itself, which may be nothing.
  CHECK(threads > 1 || all > ROWS / PANEL * (others.count / PANEL) / 2);
  for (int64_t question = 0; question < all; question += question + 1) {
    questions = 0;
    last_question = question;
    bool ended = false;
    try {
      count_with(level, sides, ROWS, others.count, runs);
    } catch (const Interrupted&) {
      ended = questions == question + 1;
    }
    CHECK_WITH(ended || (threads > 1 && questions <= question), "question %lld of %lld",
               static_cast<long long>(question), static_cast<long long>(all));
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  for (const Kind kind : KINDS) {
    for (const int64_t dim : {1, 3, 33, 100, 513}) {
      check_counts(*level, kind, 7, 1, dim);
      check_counts(*level, kind, 5, 300, dim);
      check_counts(*level, kind, 110, 0, dim);
    }
    check_counts(*level, kind, 100, 97, 64);
    check_counts(*level, kind, 500, 0, 16);  // several blocks of panels
  }
  for (const int threads : {1, 3}) {
    check_interrupted(*level, 0, threads);
    check_interrupted(*level, 20 * PANEL, threads);
  }
  return summary();
}
