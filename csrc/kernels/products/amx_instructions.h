// The few AMX instructions that the products use, on the hardware or, for tests on machines without
// it, imitated: tiles of 16 rows of 64 bytes.
#pragma once

#include <cstdint>

#if defined(CIRCLE_IMITATE_AMX)

#include <cstring>

namespace circle_kernels {
namespace {

struct ImitatedTile {
  unsigned char bytes[16][64];
};
thread_local ImitatedTile imitated_tiles[8];
thread_local bool tiles_configured = false;

inline float widened(uint32_t upper_half) {
  const uint32_t bits = upper_half << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void configure_tiles() { tiles_configured = true; }
inline void release_tiles() { tiles_configured = false; }

template <int tile>
void load_tile(const void* from, int64_t stride) {
  if (!tiles_configured) __builtin_trap();  // as the hardware does
  for (int row = 0; row < 16; ++row) {
    std::memcpy(imitated_tiles[tile].bytes[row],
                static_cast<const unsigned char*>(from) + row * stride, 64);
  }
}

template <int tile>
void store_tile(void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row) {
    std::memcpy(static_cast<unsigned char*>(to) + row * stride, imitated_tiles[tile].bytes[row],
                64);
  }
}

// sums(m, n) += sum_k a(m, 2k) b(k, 2n) + a(m, 2k + 1) b(k, 2n + 1)
template <int sums, int a, int b>
void multiply_tiles() {
  for (int m = 0; m < 16; ++m) {
    float row[16];
    std::memcpy(row, imitated_tiles[sums].bytes[m], 64);
    for (int k = 0; k < 16; ++k) {
      uint32_t pair_a, pairs_b[16];
      std::memcpy(&pair_a, imitated_tiles[a].bytes[m] + 4 * k, 4);
      std::memcpy(pairs_b, imitated_tiles[b].bytes[k], 64);
      for (int n = 0; n < 16; ++n) {
        row[n] += widened(pair_a & 0xffff) * widened(pairs_b[n] & 0xffff);
        row[n] += widened(pair_a >> 16) * widened(pairs_b[n] >> 16);
      }
    }
    std::memcpy(imitated_tiles[sums].bytes[m], row, 64);
  }
}

template <int tile>
void clear_tile() {
  std::memset(imitated_tiles[tile].bytes, 0, sizeof imitated_tiles[tile].bytes);
}

}  // namespace
}  // namespace circle_kernels

#define CIRCLE_LOAD_TILE(tile, from, stride) load_tile<tile>(from, stride)
#define CIRCLE_STORE_TILE(tile, to, stride) store_tile<tile>(to, stride)
#define CIRCLE_CLEAR_TILE(tile) clear_tile<tile>()
#define CIRCLE_MULTIPLY_TILES(sums, a, b) multiply_tiles<sums, a, b>()

#else

#include <immintrin.h>

namespace circle_kernels {
namespace {

// Tile shapes are state of the thread, which other libraries change as well: they have to be set at
// every entry.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  static_assert(sizeof shapes == 64);
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = 64;
    shapes.rows[tile] = 16;
  }
  _tile_loadconfig(&shapes);
}

inline void release_tiles() { _tile_release(); }

}  // namespace
}  // namespace circle_kernels

// Macros, since compilers want the number of a tile as it is written.
#define CIRCLE_LOAD_TILE(tile, from, stride) _tile_loadd(tile, from, stride)
#define CIRCLE_STORE_TILE(tile, to, stride) _tile_stored(tile, to, stride)
#define CIRCLE_CLEAR_TILE(tile) _tile_zero(tile)
#define CIRCLE_MULTIPLY_TILES(sums, a, b) _tile_dpbf16ps(sums, a, b)

#endif
