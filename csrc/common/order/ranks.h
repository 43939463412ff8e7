// Labels numbered in the order of their first appearance.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <vector>

namespace circle_kernels {

// A hash table with open addressing, since a step of a small batch would feel one allocation for
// every label. A label that does not find its place in a few steps goes to a tree: labels made to
// have one hash cost a logarithm each, and not a walk past all others.
class Ranks {
 public:
  static constexpr int MOST_STEPS = 32;

  explicit Ranks(int64_t most_labels) {
    while (bits_ < 62 && (int64_t{1} << bits_) / 2 < most_labels) ++bits_;
    slots_.assign(std::size_t{1} << bits_, EMPTY);
  }

  int32_t size() const { return static_cast<int32_t>(labels_.size()); }
  // Slots of the table that were looked at so far.
  int64_t steps() const { return steps_; }

  // The rank of a label, which is the next one for a label not seen before.
  int32_t operator()(int64_t label) {
    // Fibonacci hashing: the upper bits of the product depend on all bits of the label.
    std::size_t slot = (static_cast<uint64_t>(label) * 0x9e3779b97f4a7c15u) >> (64 - bits_);
    for (int step = 1; step <= MOST_STEPS; ++step) {
      if (slots_[slot] == EMPTY) slots_[slot] = add(label);
      if (labels_[slots_[slot]] == label) {
        steps_ += step;
        return slots_[slot];
      }
      slot = (slot + 1) & (slots_.size() - 1);
    }
    steps_ += MOST_STEPS;
    const auto [place, is_new] = crowded_.try_emplace(label, size());
    if (is_new) add(label);
    return place->second;
  }

 private:
  static constexpr int32_t EMPTY = -1;

  int32_t add(int64_t label) {
    if (labels_.size() == std::numeric_limits<int32_t>::max()) {
      throw std::length_error("more than 2^31 - 1 classes");
    }
    labels_.push_back(label);
    return size() - 1;
  }

  int bits_ = 4;
  int64_t steps_ = 0;
  std::vector<int32_t> slots_;          // hash -> rank
  std::vector<int64_t> labels_;         // rank -> label
  std::map<int64_t, int32_t> crowded_;  // label -> rank, where no slot near its hash is free
};

}  // namespace circle_kernels
