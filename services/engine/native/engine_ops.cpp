// The small operations of a decoder layer on the CPU: what torch does in many calls, each in one.
//
// A plain C interface: pointers, sizes in elements, `type` 0 for float and 1 for bfloat16. Intermediate results are
// rounded to the type where the model's own code rounds them. The Python side checks shapes; nothing is checked here.

#include "chunk_attention.h"
#include "step.h"

namespace pdmesh {

constexpr int64_t kRowsPerTask = 8;
constexpr int64_t kWorthThreads = 1 << 15;  // elements; below, waking a thread costs more than it saves

template <typename Row>
void for_rows(int64_t rows, int64_t width, int64_t threads, const Row& row) {
  if (rows * width < kWorthThreads) threads = 1;
  int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  for_each(tasks, threads, [&](int64_t task) {
    int64_t stop = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t index = task * kRowsPerTask; index < stop; ++index) row(index);
  });
}

// total = x + added (when given, stored in place of x); out = weight · total / rms(total)
template <typename T>
void rms_norm(T* x, const T* added, const T* weight, T* out, int64_t rows, int64_t width, float epsilon,
              int64_t threads) {
  for_rows(rows, width, threads, [&](int64_t row) {
    T* own = x + row * width;
    Floats squares = Floats{};
    for (int64_t i = 0; i < width; i += kLanes) {
      Floats value = load(own + i);
      if (added != nullptr) {
        value = as<T>(value + load(added + row * width + i));
        store(own + i, value);
      }
      squares += value * value;
    }
    scale_row(own, weight, out + row * width, width, squares, epsilon);
  });
}

// Query heads and key heads of some rows, one after the other in each. Mirrored by structs.py.
struct Rotation {
  void* x;  // row i at x + i · row_stride
  const void *cosines, *sines;  // [rows, dim]
  HeadNorm query_norm, key_norm;
  int64_t rows, row_stride, query_heads, key_heads, dim, type, threads;
};

template <typename T>
void rotate(const Rotation& call) {
  const int64_t heads = call.query_heads + call.key_heads, dim = call.dim;
  for_rows(call.rows, heads * dim, call.threads, [&](int64_t row) {
    const T* cosine = static_cast<const T*>(call.cosines) + row * dim;
    const T* sine = static_cast<const T*>(call.sines) + row * dim;
    T* own = static_cast<T*>(call.x) + row * call.row_stride;
    for (int64_t head = 0; head < heads; ++head) {
      (head < call.query_heads ? call.query_norm : call.key_norm).apply(own + head * dim, dim);
      rotate_head(own + head * dim, cosine, sine, dim);
    }
  });
}

// out[row] = silu(x[row][:width]) · x[row][width:]
template <typename T>
void silu_and_multiply(const T* x, T* out, int64_t rows, int64_t width, int64_t threads) {
  for_rows(rows, width, threads, [&](int64_t row) {
    const T *gate = x + row * 2 * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += kLanes) store(out + row * width + i, gated<T>(load(gate + i), load(up + i)));
  });
}

// A token of `heads` · `dim` elements for each row, into the slots of a cache. Mirrored by structs.py.
struct Write {
  const void *key, *value;  // row i, head h at i · row + h · head
  void *keys, *values;      // of one layer
  const int64_t* slots;     // block · block_size + offset in it
  int64_t rows, heads, dim;
  int64_t key_row, key_head, value_row, value_head;
  int64_t block_size, block_stride, token_stride, head_stride;
  int64_t type;
};

template <typename T>
void write_rows(const Write& call, const void* source, void* cache, int64_t row_stride, int64_t source_head) {
  for (int64_t row = 0; row < call.rows; ++row) {
    int64_t block = call.slots[row] / call.block_size, offset = call.slots[row] % call.block_size;
    T* slot = static_cast<T*>(cache) + block * call.block_stride + offset * call.token_stride;
    const T* from = static_cast<const T*>(source) + row * row_stride;
    for (int64_t head = 0; head < call.heads; ++head)
      std::memcpy(slot + head * call.head_stride, from + head * source_head, call.dim * sizeof(T));
  }
}

}  // namespace pdmesh

using pdmesh::BFloat16;

#define PDMESH_FOR_TYPE(type, call)            \
  if ((type) == 0) {                           \
    using T = float;                           \
    call;                                      \
  } else {                                     \
    using T = BFloat16;                        \
    call;                                      \
  }

extern "C" {

int64_t pdmesh_attend(const pdmesh::DecodeAttention* call) {
  bool known = false;
  PDMESH_FOR_TYPE(call->type, known = pdmesh::attend<T>(*call))
  return known ? 1 : 0;
}

int64_t pdmesh_attend_chunk(const pdmesh::ChunkAttention* call) {
  bool known = false;
  PDMESH_FOR_TYPE(call->type, known = pdmesh::attend_chunk<T>(*call))
  return known ? 1 : 0;
}

void pdmesh_rms_norm(void* x, const void* added, const void* weight, void* out, int64_t rows, int64_t width,
                     float epsilon, int64_t type, int64_t threads) {
  PDMESH_FOR_TYPE(type, pdmesh::rms_norm(static_cast<T*>(x), static_cast<const T*>(added),
                                         static_cast<const T*>(weight), static_cast<T*>(out), rows, width, epsilon,
                                         threads))
}

void pdmesh_rotate(const pdmesh::Rotation* call) { PDMESH_FOR_TYPE(call->type, pdmesh::rotate<T>(*call)) }

void pdmesh_silu_and_multiply(const void* x, void* out, int64_t rows, int64_t width, int64_t type, int64_t threads) {
  PDMESH_FOR_TYPE(type, pdmesh::silu_and_multiply(static_cast<const T*>(x), static_cast<T*>(out), rows, width,
                                                  threads))
}

void pdmesh_write(const pdmesh::Write* call) {
  PDMESH_FOR_TYPE(call->type, {
    pdmesh::write_rows<T>(*call, call->key, call->keys, call->key_row, call->key_head);
    pdmesh::write_rows<T>(*call, call->value, call->values, call->value_row, call->value_head);
  })
}

int64_t pdmesh_most_rows(int64_t threads) {
  // Where registers hold the sums of one row only, every row would read all weights again.
  if (pdmesh::kRowsAtOnce == 1) return 0;
  return threads == 1 || pdmesh::has_teams() ? pdmesh::kMostRows : 0;
}

void pdmesh_step(const pdmesh::Step* step) { PDMESH_FOR_TYPE(step->type, pdmesh::run_step<T>(*step)) }

// How large this side holds each struct to be that structs.py mirrors.
#define PDMESH_SIZE_OF(Struct) \
  int64_t pdmesh_size_of_##Struct() { return sizeof(pdmesh::Struct); }

PDMESH_SIZE_OF(DecodeAttention)
PDMESH_SIZE_OF(ChunkAttention)
PDMESH_SIZE_OF(Write)
PDMESH_SIZE_OF(HeadNorm)
PDMESH_SIZE_OF(Rotation)
PDMESH_SIZE_OF(Matrix)
PDMESH_SIZE_OF(Layer)
PDMESH_SIZE_OF(Step)

}  // extern "C"
