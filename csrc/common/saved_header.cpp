#include "common/saved_header.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace circle_kernels {

namespace {

// Raised in its last digits when the layout changes. Rounding any part of it, taken as numbers of
// any type, to fewer digits makes another number of it.
constexpr uint64_t MAGIC = 0x5ca1ab1d4e55b009u;

struct Header {
  uint64_t magic;
  int64_t rows, columns, dim;
  int64_t kept_tiles;
  int32_t level;
  uint8_t number_bytes;
  uint8_t self_mode;
  uint8_t skips;  // whether there is what skip_below needs, in place of shifts
  uint8_t both_sides;
  uint8_t own_copies;  // whether there are pairs of neither kind
  uint8_t unused[15];
};
static_assert(sizeof(Header) == SAVED_HEADER_BYTES);

Header header_of(const Problem& problem) {
  Header header{};
  header.magic = MAGIC;
  header.rows = problem.rows.count;
  header.columns = problem.columns.count;
  header.dim = problem.rows.dim;
  header.kept_tiles = problem.kept_tiles;
  header.number_bytes = static_cast<uint8_t>(result_bytes(problem.scalar));
  header.self_mode = problem.self_mode;
  header.skips = problem.skip_below > 0;
  header.both_sides = problem.both_sides;
  header.own_copies = problem.own_columns != nullptr;
  return header;
}

std::string described(const Header& header) {
  return std::to_string(header.rows) + " rows, " + std::to_string(header.columns) + " columns" +
         (header.self_mode    ? " (the rows again)"
          : header.both_sides ? " (which count pairs, too)"
                              : "") +
         ", dim " + std::to_string(header.dim) + ", " + std::to_string(header.number_bytes) +
         "-byte results, own copies " + (header.own_copies ? "left out" : "none") +
         ", skip_below " + (header.skips ? "above 0" : "0") + ", " +
         std::to_string(header.kept_tiles) + " tiles kept";
}

[[noreturn]] void refuse(const std::string& reason) {
  throw std::runtime_error(
      "circle_kernels: what the forward pass saved was changed, or does not belong to this "
      "problem: " +
      reason);
}

bool has_so_many_tiles(const Problem& problem, int64_t kept_tiles) {
  return kept_tiles >= 0 &&
         kept_tiles <= tiles_of(problem.rows.count, problem.columns.count, problem.self_mode);
}

int64_t saved_bytes(const Problem& problem) {
  return SavedLayout(problem).size() * result_bytes(problem.scalar);
}

}  // namespace

void check_saved_memory(const Problem& problem, int64_t bytes) {
  if (!has_so_many_tiles(problem, problem.kept_tiles)) {
    throw std::invalid_argument("kept_tiles is " + std::to_string(problem.kept_tiles) +
                                ", which the problem does not have");
  }
  if (bytes != saved_bytes(problem)) {
    throw std::invalid_argument("saved has " + std::to_string(bytes) + " bytes, wanted " +
                                std::to_string(saved_bytes(problem)));
  }
}

void write_saved_header(const Problem& problem, int level, void* saved) {
  Header header = header_of(problem);
  header.level = level;
  std::memcpy(saved, &header, sizeof header);
}

SavedBy read_saved_header(const Problem& problem, const void* saved, int64_t bytes) {
  if (bytes < SAVED_HEADER_BYTES) refuse("it has " + std::to_string(bytes) + " bytes");
  Header header;
  std::memcpy(&header, saved, sizeof header);
  if (header.magic != MAGIC) refuse("it does not begin as it was written");
  Header expected = header_of(problem);
  expected.kept_tiles = header.kept_tiles;
  expected.level = header.level;
  if (std::memcmp(&header, &expected, sizeof header) != 0 ||
      !has_so_many_tiles(problem, header.kept_tiles)) {
    refuse("it says to be of " + described(header) + "; the gradient is of " + described(expected));
  }
  Problem kept = problem;
  kept.kept_tiles = header.kept_tiles;
  if (bytes != saved_bytes(kept)) {
    refuse("it has " + std::to_string(bytes) + " bytes of " + std::to_string(saved_bytes(kept)));
  }
  return {header.level, header.kept_tiles};
}

}  // namespace circle_kernels
