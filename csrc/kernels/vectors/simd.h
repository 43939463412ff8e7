// Vectors of CIRCLE_VECTOR_BYTES bytes, on compiler vector extensions.
//
// Included by one translation unit per instruction set. Everything lies in an unnamed namespace:
// two units compiled for different instruction sets must not share one symbol, or the linker could
// give code for a new machine to an old one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(CIRCLE_VECTOR_BYTES)
#error "define CIRCLE_VECTOR_BYTES before including this"
#endif

#define CIRCLE_INLINE inline __attribute__((always_inline))

// Loops over registers, which have to be unrolled for the registers to be registers.
#define CIRCLE_UNROLL _Pragma("GCC unroll 16")
// Loops over pairs: enough independent work in flight, without a page of code for each.
#define CIRCLE_UNROLL_PAIRS _Pragma("GCC unroll 2")

namespace circle_kernels {
namespace {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(CIRCLE_VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int LANES = CIRCLE_VECTOR_BYTES / static_cast<int>(sizeof(T));

// The integer as wide as a lane: what comparisons give, and what class ids are kept in.
template <class T>
struct LaneInteger;
template <>
struct LaneInteger<float> {
  using type = int32_t;
};
template <>
struct LaneInteger<double> {
  using type = int64_t;
};
template <class T>
using Int = typename LaneInteger<T>::type;

template <class T>
CIRCLE_INLINE Vec<T> load(const T* from) {
  Vec<T> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class T>
CIRCLE_INLINE void store(T* to, Vec<T> vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// As many bytes as a vector of T has lanes, as its integers.
template <class T>
CIRCLE_INLINE Vec<Int<T>> widen_bytes(const uint8_t* from) {
  typedef uint8_t Bytes __attribute__((vector_size(LANES<T>)));
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Vec<Int<T>>);
}

// As many numbers as a vector of T has, in double.
template <class T>
struct Doubled {
  static constexpr int PARTS = sizeof(double) / sizeof(T);
  typedef T Narrow __attribute__((vector_size(CIRCLE_VECTOR_BYTES / PARTS)));

  Vec<double> parts[PARTS];

  static CIRCLE_INLINE Doubled load(const T* from) {
    Doubled result;
    CIRCLE_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      Narrow numbers;
      std::memcpy(&numbers, from + part * LANES<double>, sizeof numbers);
      result.parts[part] = __builtin_convertvector(numbers, Vec<double>);
    }
    return result;
  }
  CIRCLE_INLINE void store(T* to) const {
    CIRCLE_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      const Narrow numbers = __builtin_convertvector(parts[part], Narrow);
      std::memcpy(to + part * LANES<double>, &numbers, sizeof numbers);
    }
  }
};

// Stores past the caches, for what will not be read soon: the memory's old contents are then not
// fetched first. `to` is aligned to a vector; finish_streaming() comes before another thread reads.
template <class T>
CIRCLE_INLINE void stream(T* to, Vec<T> vector) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)vector);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  _mm256_stream_si256((__m256i*)to, (__m256i)vector);
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  _mm_stream_si128((__m128i*)to, (__m128i)vector);
#else
  store(to, vector);
#endif
}

inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// x - 0 is x for every x, and compilers leave it out; 0 + x, where x is -0, they must compute.
template <class T>
CIRCLE_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// Where a comparison of scalars or vectors holds `yes`, elsewhere `no`.
template <class T>
CIRCLE_INLINE Vec<T> select(Vec<Int<T>> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

// The larger; where `value` is NaN, that NaN: x86's max returns its second operand then.
CIRCLE_INLINE Vec<float> at_least(Vec<float> bound, Vec<float> value) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)bound, (__m512)value);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<float>)_mm256_max_ps((__m256)bound, (__m256)value);
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return (Vec<float>)_mm_max_ps((__m128)bound, (__m128)value);
#else
  return bound > value ? bound : value;
#endif
}

CIRCLE_INLINE Vec<double> at_least(Vec<double> bound, Vec<double> value) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_max_pd((__m512d)bound, (__m512d)value);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<double>)_mm256_max_pd((__m256d)bound, (__m256d)value);
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return (Vec<double>)_mm_max_pd((__m128d)bound, (__m128d)value);
#else
  return bound > value ? bound : value;
#endif
}

// The smaller; where `value` is NaN, that NaN.
CIRCLE_INLINE Vec<float> at_most(Vec<float> bound, Vec<float> value) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps((__m512)bound, (__m512)value);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<float>)_mm256_min_ps((__m256)bound, (__m256)value);
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return (Vec<float>)_mm_min_ps((__m128)bound, (__m128)value);
#else
  return bound < value ? bound : value;
#endif
}

CIRCLE_INLINE Vec<double> at_most(Vec<double> bound, Vec<double> value) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_min_pd((__m512d)bound, (__m512d)value);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Vec<double>)_mm256_min_pd((__m256d)bound, (__m256d)value);
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return (Vec<double>)_mm_min_pd((__m128d)bound, (__m128d)value);
#else
  return bound < value ? bound : value;
#endif
}

// The upper half of a vector onto its lower half, until one lane is left. The order is fixed, so
// sums are the same from run to run.
template <class T, class Combine>
CIRCLE_INLINE T reduce(Vec<T> vector, Combine combine) {
  T lanes[LANES<T>];
  store(lanes, vector);
  CIRCLE_UNROLL
  for (int width = LANES<T> / 2; width > 0; width /= 2) {
    CIRCLE_UNROLL
    for (int lane = 0; lane < width; ++lane) {
      lanes[lane] = combine(lanes[lane], lanes[lane + width]);
    }
  }
  return lanes[0];
}

template <class T>
CIRCLE_INLINE T sum(Vec<T> vector) {
  return reduce<T>(vector, [](T a, T b) { return a + b; });
}

#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <>
CIRCLE_INLINE float sum<float>(Vec<float> vector) {
  return _mm512_reduce_add_ps((__m512)vector);
}
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
template <>
CIRCLE_INLINE float sum<float>(Vec<float> vector) {
  __m128 half =
      _mm_add_ps(_mm256_castps256_ps128((__m256)vector), _mm256_extractf128_ps((__m256)vector, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#endif

template <class T>
CIRCLE_INLINE T largest(Vec<T> vector) {
  return reduce<T>(vector, [](T a, T b) { return a > b ? a : b; });
}

template <class T>
CIRCLE_INLINE T smallest(Vec<T> vector) {
  return reduce<T>(vector, [](T a, T b) { return a < b ? a : b; });
}

}  // namespace
}  // namespace circle_kernels
