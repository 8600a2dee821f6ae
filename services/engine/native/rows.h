// What is done to single rows between the products of a layer, rounded where the models' own code rounds.
#pragma once

#include <cmath>

#include "vectors.h"

namespace pdmesh {

// out = weight · x / rms(x), of the sums of squares of x
template <typename T>
inline void scale_row(const T* x, const T* weight, T* out, int64_t width, Floats squares, float epsilon) {
  float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + epsilon);
  for (int64_t i = 0; i < width; i += kLanes) store(out + i, load(weight + i) * as<T>(load(x + i) * scale));
}

template <typename T>
inline void normalise_row(const T* x, const T* weight, T* out, int64_t width, float epsilon) {
  Floats squares = Floats{};
  for (int64_t i = 0; i < width; i += kLanes) squares += load(x + i) * load(x + i);
  scale_row(x, weight, out, width, squares, epsilon);
}

// What some models do to each head of queries, or of keys, before the rotation.
struct HeadNorm {
  const void* weight;  // [dim]; null: nothing
  float epsilon;

  template <typename T>
  void apply(T* head, int64_t dim) const {
    if (weight != nullptr) normalise_row(head, static_cast<const T*>(weight), head, dim, epsilon);
  }
};

// Rotate one head in place: its first half with its second (Llama's order).
template <typename T>
inline void rotate_head(T* low, const T* cosine, const T* sine, int64_t dim) {
  T* high = low + dim / 2;
  for (int64_t i = 0; i < dim / 2; i += kLanes) {
    Floats a = load(low + i), b = load(high + i);
    store(low + i, as<T>(a * load(cosine + i)) - as<T>(b * load(sine + i)));
    store(high + i, as<T>(b * load(cosine + dim / 2 + i)) + as<T>(a * load(sine + dim / 2 + i)));
  }
}

// silu(gate) · up
template <typename T>
inline Floats gated(Floats gate, Floats up) {
  return as<T>(gate / (1.0f + exponential(-gate))) * up;
}

}  // namespace pdmesh
