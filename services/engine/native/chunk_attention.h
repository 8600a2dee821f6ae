// Attention of the rows of a chunk of a sequence over paged KV: tiles of keys, a running softmax.
//
// The rows of a task are queries of one KV head: some positions, with all query heads that share it. Keys and values of
// a tile are laid out once for them as `multiply_rows` wants its weights.
#pragma once

#include "decode_attention.h"
#include "products.h"

namespace pdmesh {

// Mirrored by structs.py. Strides and sizes in elements.
struct ChunkAttention {
  const void* keys;  // of one layer: [blocks, ...] with the strides below
  const void* values;
  const void* query;  // row i, query head h at query + i · query_row + h · query_head
  void* out;          // [rows, query heads, dim], contiguous
  const int64_t* table;  // the block ids of the sequence, from its first on
  int64_t start, rows;   // positions [start, start + rows), whose keys and values are in the cache
  int64_t window;        // positions seen, the row's own included; 0: all
  int64_t heads, groups, dim, query_row, query_head;
  int64_t block_size, block_stride, token_stride, head_stride, type, threads;
  float scaling;
};

constexpr int64_t kTaskRows = 192;   // queries of a task, at most
constexpr int64_t kScoredRows = 24;  // queries whose scores are held at a time
constexpr int64_t kTileTokens = kWidest;    // tokens whose keys and values are laid out at a time
constexpr int64_t kMostDim = 256;
constexpr float kLowest = -1e30f;  // below every score, and no infinity: differences stay numbers

inline float highest(Floats value) {
  float found = value[0];
  for (int lane = 1; lane < kLanes; ++lane) found = std::max(found, value[lane]);
  return found;
}

// Words of 32 bits, [kTileTokens][words] to [words][kTileTokens].
inline void transpose(const char* const* tokens, int64_t words, uint32_t* out) {
  for (int64_t w = 0; w < words; ++w)
    for (int64_t t = 0; t < kTileTokens; ++t) std::memcpy(out + w * kTileTokens + t, tokens[t] + w * 4, 4);
}

// Sixteen values of each of kTogether tokens, side by side.
inline void interleave(const char* const* tokens, int64_t first, float* out) {
  store(out, load(reinterpret_cast<const float*>(tokens[0]) + first));
}

inline void interleave(const char* const* tokens, int64_t first, BFloat16* out) {
  Halves even, odd;
  std::memcpy(&even, tokens[0] + first * 2, sizeof even);
  std::memcpy(&odd, tokens[1] + first * 2, sizeof odd);
  Words pairs = __builtin_convertvector(even, Words) | __builtin_convertvector(odd, Words) << 16;
  std::memcpy(out, &pairs, sizeof pairs);
}

template <typename T>
class ChunkTask {
 public:
  const ChunkAttention& call;
  const int64_t head, first_group, groups;  // query heads [first_group, first_group + groups) of this KV head
  const int64_t first_row, positions;       // rows [first_row, first_row + positions) of the chunk

  ChunkTask(const ChunkAttention& call, int64_t head, int64_t first_group, int64_t groups, int64_t first_row,
            int64_t positions)
      : call(call), head(head), first_group(first_group), groups(groups), first_row(first_row), positions(positions) {}

  void run() {
    const int64_t rows = positions * groups, from = call.start + first_row, stop = from + positions;
    begin(rows);
    for (int64_t tile = first_seen(from); tile < stop; tile += kTileTokens) {
      read(tile, std::min(kTileTokens, stop - tile));
      const bool is_masked = tile + kTileTokens > from + 1 || first_seen(stop - 1) > tile;
      // Queries before the tile see nothing of it.
      int64_t row = std::max<int64_t>(0, tile - from) * groups;
      for (; row < rows; row += kScoredRows) attend(tile, row, std::min(kScoredRows, rows - row), is_masked);
    }
    finish(rows);
  }

 private:
  // Where the query of `row` is: row of the chunk and query head.
  int64_t row_of(int64_t row) const { return first_row + row / groups; }
  int64_t head_of(int64_t row) const { return head * call.groups + first_group + row % groups; }

  int64_t first_seen(int64_t position) const {
    return call.window > 0 ? std::max<int64_t>(0, position + 1 - call.window) : 0;
  }

  void begin(int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(query + row * call.dim,
                  static_cast<const T*>(call.query) + row_of(row) * call.query_row + head_of(row) * call.query_head,
                  call.dim * sizeof(T));
      highest_score[row] = kLowest, total[row] = 0;
    }
    std::memset(static_cast<void*>(mixed), 0, rows * call.dim * sizeof(float));
  }

  void finish(int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      T* to = static_cast<T*>(call.out) + (row_of(row) * call.heads * call.groups + head_of(row)) * call.dim;
      for (int64_t i = 0; i < call.dim; i += kLanes) store(to + i, mixed[(row * call.dim + i) / kLanes] / total[row]);
    }
  }

  // Keys and values of tokens [tile, tile + count), zeros behind: what a cache holds there is anything.
  void read(int64_t tile, int64_t count) {
    alignas(64) static const char zeros[kMostDim * sizeof(T)] = {};
    const char *key[kTileTokens], *value[kTileTokens];
    for (int64_t t = 0; t < kTileTokens; ++t) {
      key[t] = value[t] = zeros;
      if (t >= count) continue;
      int64_t place = call.table[(tile + t) / call.block_size] * call.block_stride +
                      (tile + t) % call.block_size * call.token_stride + head * call.head_stride;
      key[t] = reinterpret_cast<const char*>(static_cast<const T*>(call.keys) + place);
      value[t] = reinterpret_cast<const char*>(static_cast<const T*>(call.values) + place);
    }
    transpose(key, call.dim * sizeof(T) / 4, keys);
    constexpr int64_t kTogether = Weights<T>::kTogether;
    for (int64_t t = 0; t < kTileTokens; t += kTogether)
      for (int64_t i = 0; i < call.dim; i += kLanes)
        interleave(value + t, i, values + (i / kWidest * kTileTokens + t) * kWidest + i % kWidest * kTogether);
  }

  // `rows` queries from `row` on, over the tile that was read.
  void attend(int64_t tile, int64_t row, int64_t rows, bool is_masked) {
    Floats scores[kScoredRows * kMostVectors];
    T weights[kScoredRows * kTileTokens];
    float scales[kScoredRows];
    const T* wanted = query + row * call.dim;
    multiply_panel<T, kMostVectors, false>(reinterpret_cast<const T*>(keys), wanted, call.dim, rows, scores);
    for (int64_t r = 0; r < rows; ++r) {
      Floats* own = scores + r * kMostVectors;
      for (int v = 0; v < kMostVectors; ++v) own[v] *= call.scaling;
      if (is_masked) mask(own, tile, call.start + row_of(row + r));
      scales[r] = weigh_row(own, row + r, weights + r * kTileTokens);
    }
    for (int64_t first = 0; first < call.dim; first += kWidest) {
      Floats added[kScoredRows * kMostVectors];
      multiply_panel<T, kMostVectors, false>(values + first * kTileTokens, weights, kTileTokens, rows, added);
      const int64_t known = std::min<int64_t>(kWidest, call.dim - first) / kLanes;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t v = 0; v < known; ++v) {
          Floats& sum = mixed[((row + r) * call.dim + first) / kLanes + v];
          sum = sum * scales[r] + added[r * kMostVectors + v];
        }
    }
  }

  void mask(Floats* scores, int64_t tile, int64_t position) const {
    const Ints low = Ints{} + static_cast<int32_t>(std::max<int64_t>(0, first_seen(position) - tile));
    const Ints high = Ints{} + static_cast<int32_t>(std::min<int64_t>(kTileTokens, position - tile));
    Ints index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int v = 0; v < kMostVectors; ++v, index += static_cast<int32_t>(kLanes))
      scores[v] = ((index >= low) & (index <= high)) ? scores[v] : all(-std::numeric_limits<float>::infinity());
  }

  // Weights of one query relative to its highest score so far; returns what scales those of before.
  float weigh_row(const Floats* scores, int64_t row, T* weights) {
    Floats most = scores[0];
    for (int v = 1; v < kMostVectors; ++v) most = at_least(most, scores[v]);
    const float before = highest_score[row], now = std::max(before, highest(most));
    Floats sums = Floats{};
    for (int v = 0; v < kMostVectors; ++v) {
      Floats weight = exponential(scores[v] - now);
      store(weights + v * kLanes, weight);
      sums += weight;
    }
    const float scale = now == before ? 1.0f : std::exp(before - now);
    highest_score[row] = now;
    total[row] = total[row] * scale + sum(sums);
    return scale;
  }

  alignas(64) Floats mixed[kTaskRows * kMostDim / kLanes];
  alignas(64) uint32_t keys[kTileTokens * kMostDim * sizeof(T) / 4];
  alignas(64) T values[kTileTokens * kMostDim];
  T query[kTaskRows * kMostDim];
  float highest_score[kTaskRows], total[kTaskRows];
};

// False where there is no code for such heads.
template <typename T>
bool attend_chunk(const ChunkAttention& call) {
  if (call.dim > kMostDim || call.dim % kLanes != 0) return false;
  // For wide heads fewer rows, so that a core's own cache holds them.
  const int64_t most = call.dim <= 64 ? kTaskRows : kTaskRows / 2;
  const int64_t groups = std::min(call.groups, most), positions = most / groups;
  const int64_t parts = (call.rows + positions - 1) / positions, slices = (call.groups + groups - 1) / groups;
  for_each(parts * slices * call.heads, call.threads, [&](int64_t task) {
    // The last rows first: they see most, and nobody is to wait for them in the end.
    const int64_t first_row = (parts - 1 - task / (slices * call.heads)) * positions;
    const int64_t head = task % call.heads, first_group = task / call.heads % slices * groups;
    ChunkTask<T>(call, head, first_group, std::min(groups, call.groups - first_group), first_row,
                 std::min(positions, call.rows - first_row))
        .run();
  });
  return true;
}

}  // namespace pdmesh
