// Attention of single query rows over paged KV, read where it lies.
#pragma once

#include <cmath>
#include <limits>

#include "parallel.h"
#include "vectors.h"

namespace pdmesh {

// One call: `sequences` rows, each over its own blocks. Strides and sizes in elements. Mirrored by structs.py.
struct DecodeAttention {
  const void* keys;    // of one layer: [blocks, ...] with the strides below
  const void* values;
  const void* query;   // row i, query head h at query + i · query_row + h · query_head
  void* out;           // [sequences, query heads, dim], contiguous
  const int64_t* tables;  // the block ids of all sequences, one after the other
  const int64_t* table_starts;  // [sequences]: where in `tables` the blocks of a sequence begin
  const int64_t* first;  // [sequences]: first position seen
  const int64_t* last;   // [sequences]: last position seen, the row's own
  int64_t sequences, heads, groups, dim;  // groups: query heads for each KV head
  int64_t query_row, query_head;
  int64_t block_size, block_stride, token_stride, head_stride;
  int64_t type, threads;
  float scaling;
};

constexpr int64_t kTile = 64;  // tokens whose scores are held at a time

// `kGroups` query heads of one KV head: the running maximum, the sum of weights, and the weighted values.
template <int kVectors, int kGroups>
struct Running {
  Floats mixed[kGroups][kVectors];
  float highest[kGroups], total[kGroups];
};

template <typename T>
inline const T* token_at(const DecodeAttention& call, const void* cache, const int64_t* table, int64_t head,
                         int64_t position) {
  int64_t block = table[position / call.block_size], offset = position % call.block_size;
  return static_cast<const T*>(cache) + block * call.block_stride + offset * call.token_stride +
         head * call.head_stride;
}

template <typename T, int kVectors, int kGroups>
inline void score_tile(const DecodeAttention& call, const int64_t* table, int64_t head, int64_t from, int64_t count,
                       const Floats (&query)[kGroups][kVectors], float (&scores)[kGroups][kTile]) {
  for (int64_t done = 0; done < count;) {
    int64_t run = std::min(count - done, call.block_size - (from + done) % call.block_size);
    const T* key = token_at<T>(call, call.keys, table, head, from + done);
    for (int64_t token = 0; token < run; ++token, key += call.token_stride) {
      Floats products[kGroups];
      for (int g = 0; g < kGroups; ++g) products[g] = Floats{};
      for (int v = 0; v < kVectors; ++v) {
        Floats part = load(key + v * kLanes);
        for (int g = 0; g < kGroups; ++g) products[g] += query[g][v] * part;
      }
      for (int g = 0; g < kGroups; ++g) scores[g][done + token] = sum(products[g]);
    }
    done += run;
  }
}

// Scores become weights relative to the highest so far; what was mixed before is scaled to it.
template <int kVectors, int kGroups>
inline void weigh(int64_t count, float (&scores)[kGroups][kTile], Running<kVectors, kGroups>& running) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int g = 0; g < kGroups; ++g) {
    for (int64_t t = count; t < padded; ++t) scores[g][t] = -std::numeric_limits<float>::infinity();
    float highest = running.highest[g];
    for (int64_t t = 0; t < count; ++t) highest = std::max(highest, scores[g][t]);
    float scale = std::exp(running.highest[g] - highest);
    Floats weights = Floats{};
    for (int64_t t = 0; t < padded; t += kLanes) {
      Floats weight = exponential(load(&scores[g][t]) - highest);
      store(&scores[g][t], weight);
      weights += weight;
    }
    running.total[g] = running.total[g] * scale + sum(weights);
    running.highest[g] = highest;
    for (int v = 0; v < kVectors; ++v) running.mixed[g][v] *= scale;
  }
}

template <typename T, int kVectors, int kGroups>
inline void mix_tile(const DecodeAttention& call, const int64_t* table, int64_t head, int64_t from, int64_t count,
                     const float (&scores)[kGroups][kTile], Running<kVectors, kGroups>& running) {
  Floats mixed[kGroups][kVectors];
  std::memcpy(mixed, running.mixed, sizeof mixed);
  for (int64_t done = 0; done < count;) {
    int64_t run = std::min(count - done, call.block_size - (from + done) % call.block_size);
    const T* value = token_at<T>(call, call.values, table, head, from + done);
    for (int64_t token = 0; token < run; ++token, value += call.token_stride) {
      for (int v = 0; v < kVectors; ++v) {
        Floats part = load(value + v * kLanes);
        for (int g = 0; g < kGroups; ++g) mixed[g][v] += scores[g][done + token] * part;
      }
    }
    done += run;
  }
  std::memcpy(running.mixed, mixed, sizeof mixed);
}

// Query heads [group, group + kGroups) of one KV head of one sequence.
template <typename T, int kVectors, int kGroups>
void attend_heads(const DecodeAttention& call, int64_t sequence, int64_t head, int64_t group) {
  const int64_t* table = call.tables + call.table_starts[sequence];
  const int64_t query_head = head * call.groups + group;
  const T* from = static_cast<const T*>(call.query) + sequence * call.query_row + query_head * call.query_head;
  Floats query[kGroups][kVectors];
  Running<kVectors, kGroups> running{};
  for (int g = 0; g < kGroups; ++g) {
    running.highest[g] = -std::numeric_limits<float>::infinity();
    for (int v = 0; v < kVectors; ++v) query[g][v] = load(from + g * call.query_head + v * kLanes) * call.scaling;
  }
  float scores[kGroups][kTile];
  for (int64_t position = call.first[sequence]; position <= call.last[sequence]; position += kTile) {
    int64_t count = std::min(kTile, call.last[sequence] + 1 - position);
    score_tile<T>(call, table, head, position, count, query, scores);
    weigh(count, scores, running);
    mix_tile<T>(call, table, head, position, count, scores, running);
  }
  T* out = static_cast<T*>(call.out) + (sequence * call.heads * call.groups + query_head) * call.dim;
  for (int g = 0; g < kGroups; ++g)
    for (int v = 0; v < kVectors; ++v) store(out + g * call.dim + v * kLanes, running.mixed[g][v] / running.total[g]);
}

template <typename T, int kVectors>
void attend_sequence_head(const DecodeAttention& call, int64_t sequence, int64_t head) {
  // As many query heads at a time as the registers hold beside their weighted values.
  constexpr int kMost = kVectors <= 4 ? 4 : 2;
  int64_t group = 0;
  for (; group + kMost <= call.groups; group += kMost) attend_heads<T, kVectors, kMost>(call, sequence, head, group);
  if (kMost == 4 && call.groups - group == 3) return attend_heads<T, kVectors, 3>(call, sequence, head, group);
  if (call.groups - group >= 2) {
    attend_heads<T, kVectors, 2>(call, sequence, head, group);
    group += 2;
  }
  if (call.groups - group == 1) attend_heads<T, kVectors, 1>(call, sequence, head, group);
}

typedef void (*HeadAttention)(const DecodeAttention&, int64_t sequence, int64_t head);

// The code for heads of `dim` elements; null where there is none.
template <typename T>
HeadAttention attention_of(int64_t dim) {
  switch (dim) {
    case 16: return attend_sequence_head<T, 1>;
    case 32: return attend_sequence_head<T, 2>;
    case 64: return attend_sequence_head<T, 4>;
    case 80: return attend_sequence_head<T, 5>;
    case 96: return attend_sequence_head<T, 6>;
    case 128: return attend_sequence_head<T, 8>;
    case 256: return attend_sequence_head<T, 16>;
    default: return nullptr;
  }
}

template <typename T>
bool attend(const DecodeAttention& call) {
  const HeadAttention one = attention_of<T>(call.dim);
  if (one == nullptr) return false;
  for_each(call.sequences * call.heads, call.threads,
           [&](int64_t task) { one(call, task / call.heads, task % call.heads); });
  return true;
}

}  // namespace pdmesh
