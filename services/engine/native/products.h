// A few rows times weights that lie in panels of outputs: the order that oneDNN packs them in for wide registers.
#pragma once

#include <algorithm>

#include "vectors.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace pdmesh {

constexpr int64_t kWidest = 64;  // outputs of a panel, or half as many
constexpr int kMostVectors = kWidest / kLanes;

// rows · weightᵀ + bias. Mirrored by structs.py.
struct Matrix {
  const void* weight;  // [panels][padded_inputs / kTogether][width][kTogether]; anything in what is padded
  const void* bias;    // [outputs], or null
  int64_t outputs, inputs, padded_inputs, width;

  int64_t panels() const { return (outputs + width - 1) / width; }
};

// Weights of sixteen outputs, for the inputs that lie together, and what they are multiplied with.
template <typename T>
struct Weights;

template <>
struct Weights<float> {
  static constexpr int64_t kTogether = 1;
  typedef float Input;
  Floats values;

  explicit Weights(const float* from) : values(load(from)) {}
  static Input input(const float* from) { return *from; }
  void add_to(Floats& total, Input x) const { total += values * x; }
};

#ifdef __AVX512BF16__

template <>
struct Weights<BFloat16> {
  static constexpr int64_t kTogether = 2;
  typedef __m512bh Input;
  __m512bh pairs;

  explicit Weights(const BFloat16* from) : pairs((__m512bh)_mm512_loadu_si512(from)) {}
  static Input input(const BFloat16* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  void add_to(Floats& total, Input x) const { total = (Floats)_mm512_dpbf16_ps((__m512)total, pairs, x); }
};

#else

template <>
struct Weights<BFloat16> {
  static constexpr int64_t kTogether = 2;
  struct Input {
    float first, second;
  };
  Floats first, second;

  explicit Weights(const BFloat16* from) {
    Words pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    first = (Floats)(pairs << 16);
    second = (Floats)(pairs & 0xffff0000);
  }
  static Input input(const BFloat16* from) {
    uint32_t bits[2] = {static_cast<uint32_t>(from[0].bits) << 16, static_cast<uint32_t>(from[1].bits) << 16};
    Input pair;
    std::memcpy(&pair, bits, sizeof pair);
    return pair;
  }
  void add_to(Floats& total, const Input& x) const { total += first * x.first + second * x.second; }
};

#endif

#ifdef __AVX512F__
constexpr int kRowsAtOnce = 6;  // 24 sums of 4 vectors each, 4 of weights, one of inputs: of 32 registers
#else
constexpr int kRowsAtOnce = 1;
#endif

constexpr int64_t kAhead = 4096;  // bytes; beyond the page where the CPU's own prefetching stops

// totals[row][vector] of `kRows` rows; `inputs` elements of a row at x + row · inputs. `kStreams`: the panel comes from
// memory, and what follows it is wanted next.
template <typename T, int kVectors, bool kStreams, int kRows>
void multiply_rows(const T* panel, const T* x, int64_t inputs, Floats* totals) {
  constexpr int64_t kTogether = Weights<T>::kTogether, kStep = kVectors * kLanes * kTogether;
  Floats own[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) own[r][v] = Floats{};
  for (int64_t i = 0; i < inputs; i += kTogether, panel += kStep) {
    if constexpr (kStreams)
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(reinterpret_cast<const char*>(panel) + kAhead + v * 64);
    for (int r = 0; r < kRows; ++r) {
      const typename Weights<T>::Input input = Weights<T>::input(x + r * inputs + i);
      for (int v = 0; v < kVectors; ++v) Weights<T>(panel + v * kLanes * kTogether).add_to(own[r][v], input);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) totals[r * kVectors + v] = own[r][v];
}

template <typename T, int kVectors, bool kStreams, int kRows>
void multiply_rest(const T* panel, const T* x, int64_t inputs, int64_t rows, Floats* totals) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return multiply_rows<T, kVectors, kStreams, kRows>(panel, x, inputs, totals);
    multiply_rest<T, kVectors, kStreams, kRows - 1>(panel, x, inputs, rows, totals);
  }
}

// Any number of rows.
template <typename T, int kVectors, bool kStreams>
void multiply_panel(const T* panel, const T* x, int64_t inputs, int64_t rows, Floats* totals) {
  for (; rows >= kRowsAtOnce; rows -= kRowsAtOnce, x += kRowsAtOnce * inputs, totals += kRowsAtOnce * kVectors)
    multiply_rows<T, kVectors, kStreams, kRowsAtOnce>(panel, x, inputs, totals);
  multiply_rest<T, kVectors, kStreams, kRowsAtOnce - 1>(panel, x, inputs, rows, totals);
}

// Products of `rows` rows of x with one panel: totals[row][vector], the bias added, not rounded to T.
template <typename T>
void multiply(const Matrix& matrix, int64_t panel, const T* x, int64_t rows, Floats* totals) {
  const T* weight = static_cast<const T*>(matrix.weight) + panel * matrix.width * matrix.padded_inputs;
  if (matrix.width == kWidest) {
    multiply_panel<T, kMostVectors, true>(weight, x, matrix.inputs, rows, totals);
  } else {
    multiply_panel<T, kMostVectors / 2, true>(weight, x, matrix.inputs, rows, totals);
  }
  if (matrix.bias == nullptr) return;
  const T* bias = static_cast<const T*>(matrix.bias) + panel * matrix.width;
  const int64_t vectors = matrix.width / kLanes;
  const int64_t known = std::min(vectors, (matrix.outputs - panel * matrix.width) / kLanes);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t v = 0; v < known; ++v) totals[row * vectors + v] += load(bias + v * kLanes);
}

}  // namespace pdmesh
