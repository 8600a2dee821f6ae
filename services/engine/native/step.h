// A whole step of a few decodes in one call: embedding, every layer of the Llama kind, and the logits.
//
// Five phases a layer, with all threads at each: product for q, k, v; attention; product into the residual; product
// for gate and up; product into the residual. What lies between is done by whoever needs it. Results are rounded to the
// type where the model's own code rounds them.
#pragma once

#include "decode_attention.h"
#include "products.h"
#include "rows.h"
#include "team.h"

namespace pdmesh {

constexpr int64_t kMostRows = 32;

// One decoder layer. Mirrored by structs.py, as is `Step`.
struct Layer {
  const void *norm_before_attention, *norm_before_mlp;  // [width]
  void *keys, *values;                                  // of this layer, with the strides of `Step`
  HeadNorm query_norm, key_norm;
  Matrix qkv, output, gate_and_up, down;
  int64_t window;  // positions seen; 0: all
  float epsilon_before_attention, epsilon_before_mlp, scaling;
};

// `rows` decodes. Sizes and strides in elements.
struct Step {
  const Layer* layers;
  const void* embedding;  // [vocabulary, width]
  const void* norm;       // [width], before the head
  const void *cosines, *sines;  // [positions, dim]
  const int64_t *tokens, *positions, *slots;  // [rows]
  const int64_t *tables, *table_starts;  // block ids of all rows one after the other; where each row's begin
  const int64_t* sampled;                // [samples]: rows whose logits are wanted
  void *hidden, *mixed, *attended, *inner;  // scratch: [kMostRows, width; heads of q, k, v; of q; intermediate size]
  void* normed;                             // scratch: [threads, kMostRows, width]
  float* logits;                            // [samples, vocabulary]
  Matrix head;
  int64_t num_layers, rows, samples, width, heads, groups, dim;
  int64_t block_size, block_stride, token_stride, head_stride, type, threads;
  float epsilon;
};

template <typename T>
class StepThread {
 public:
  StepThread(const Step& step, Member& member)
      : step_(step),
        member_(member),
        hidden_(static_cast<T*>(step.hidden)),
        mixed_(static_cast<T*>(step.mixed)),
        attended_(static_cast<T*>(step.attended)),
        inner_(static_cast<T*>(step.inner)),
        normed_(static_cast<T*>(step.normed) + member.number * kMostRows * step.width) {}

  void run() {
    for (int64_t index = 0; index < step_.num_layers; ++index) {
      const Layer& layer = step_.layers[index];
      normalise(layer.norm_before_attention, layer.epsilon_before_attention);
      project(layer);
      member_.share(step_.rows * step_.heads,
                    [&](int64_t task) { attend(layer, task / step_.heads, task % step_.heads); });
      add_product(layer.output, attended_);
      normalise(layer.norm_before_mlp, layer.epsilon_before_mlp);
      gate(layer.gate_and_up);
      add_product(layer.down, inner_);
    }
    answer();
  }

 private:
  // Every thread for itself: shorter than waiting for each other.
  void normalise(const void* weight, float epsilon) {
    for (int64_t row = 0; row < step_.rows; ++row)
      normalise_row(hidden_ + row * step_.width, static_cast<const T*>(weight), normed_ + row * step_.width,
                    step_.width, epsilon);
  }

  // use(row, column, sixteen results) for all of x · matrixᵀ + bias.
  template <typename Use>
  void product(const Matrix& matrix, const T* x, int64_t rows, const Use& use) {
    member_.share(matrix.panels(), [&](int64_t panel) {
      Floats totals[kMostRows * kMostVectors];
      multiply(matrix, panel, x, rows, totals);
      const int64_t first = panel * matrix.width, stop = std::min(matrix.outputs, first + matrix.width);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = first; column < stop; column += kLanes)
          use(row, column, totals[(row * matrix.width + column - first) / kLanes]);
    });
  }

  void project(const Layer& layer) {
    product(layer.qkv, normed_, step_.rows, [&](int64_t row, int64_t column, Floats value) {
      store(mixed_ + row * layer.qkv.outputs + column, value);
    });
  }

  void add_product(const Matrix& matrix, const T* x) {
    product(matrix, x, step_.rows, [&](int64_t row, int64_t column, Floats value) {
      T* sum = hidden_ + row * step_.width + column;
      store(sum, load(sum) + as<T>(value));
    });
  }

  // A panel of gate and the same one of up, which begin at half of the panels.
  void gate(const Matrix& matrix) {
    const int64_t panels = matrix.panels() / 2, vectors = matrix.width / kLanes, size = matrix.outputs / 2;
    member_.share(panels, [&](int64_t panel) {
      Floats gates[kMostRows * kMostVectors], ups[kMostRows * kMostVectors];
      multiply(matrix, panel, normed_, step_.rows, gates);
      multiply(matrix, panel + panels, normed_, step_.rows, ups);
      for (int64_t i = 0; i < step_.rows * vectors; ++i)
        store(inner_ + i / vectors * size + panel * matrix.width + i % vectors * kLanes,
              gated<T>(as<T>(gates[i]), as<T>(ups[i])));
    });
  }

  // Rotate the query heads of one KV head and its key, store key and value, attend.
  void attend(const Layer& layer, int64_t row, int64_t head) {
    const int64_t dim = step_.dim, position = step_.positions[row], query_heads = step_.heads * step_.groups;
    T* own = mixed_ + row * layer.qkv.outputs;
    T *key = own + (query_heads + head) * dim, *value = key + step_.heads * dim;
    const T* cosine = static_cast<const T*>(step_.cosines) + position * dim;
    const T* sine = static_cast<const T*>(step_.sines) + position * dim;
    for (T* query = own + head * step_.groups * dim; query < own + (head + 1) * step_.groups * dim; query += dim) {
      layer.query_norm.apply(query, dim);
      rotate_head(query, cosine, sine, dim);
    }
    layer.key_norm.apply(key, dim);
    rotate_head(key, cosine, sine, dim);
    const int64_t block = step_.slots[row] / step_.block_size, offset = step_.slots[row] % step_.block_size;
    const int64_t slot = block * step_.block_stride + offset * step_.token_stride + head * step_.head_stride;
    std::memcpy(static_cast<T*>(layer.keys) + slot, key, dim * sizeof(T));
    std::memcpy(static_cast<T*>(layer.values) + slot, value, dim * sizeof(T));
    const int64_t first = layer.window > 0 ? std::max<int64_t>(0, position + 1 - layer.window) : 0;
    DecodeAttention call{};
    call.keys = layer.keys, call.values = layer.values;
    call.query = own, call.query_head = dim;
    call.out = attended_ + row * query_heads * dim;
    call.tables = step_.tables, call.table_starts = step_.table_starts + row;
    call.first = &first, call.last = &position;
    call.heads = step_.heads, call.groups = step_.groups, call.dim = dim;
    call.block_size = step_.block_size, call.block_stride = step_.block_stride;
    call.token_stride = step_.token_stride, call.head_stride = step_.head_stride;
    call.scaling = layer.scaling;
    attention_of<T>(dim)(call, 0, head);
  }

  void answer() {
    for (int64_t index = 0; index < step_.samples; ++index)
      normalise_row(hidden_ + step_.sampled[index] * step_.width, static_cast<const T*>(step_.norm),
                    normed_ + index * step_.width, step_.width, step_.epsilon);
    product(step_.head, normed_, step_.samples, [&](int64_t row, int64_t column, Floats value) {
      Floats rounded = as<T>(value);
      std::memcpy(step_.logits + row * step_.head.outputs + column, &rounded,
                  std::min(kLanes, step_.head.outputs - column) * sizeof(float));
    });
  }

  const Step& step_;
  Member& member_;
  T *const hidden_, *const mixed_, *const attended_, *const inner_, *const normed_;
};

template <typename T>
void run_step(const Step& step) {
  for (int64_t row = 0; row < step.rows; ++row)
    std::memcpy(static_cast<T*>(step.hidden) + row * step.width,
                static_cast<const T*>(step.embedding) + step.tokens[row] * step.width, step.width * sizeof(T));
  as_team(step.threads, [&](Member& member) { StepThread<T>(step, member).run(); });
}

}  // namespace pdmesh
