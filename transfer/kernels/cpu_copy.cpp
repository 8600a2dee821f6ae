// Gather and scatter between a paged KV cache and wire memory in one pass, converting on the way where asked.
//
// A plain C interface, called by cpp_kernel.py, which checks every argument: nothing is checked here.  The file is
// compiled on the machine that uses it, so that the loops below become its widest vectors.

#include "casts.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

typedef unsigned char Byte;
typedef int64_t Int;

// ---------------------------------------------------------------- what cpp_kernel.py passes (`_Cache`, same fields)

extern "C" struct Cache {
    Byte* const* views;  // where each layer and part starts
    const Int* blocks;   // token t is in blocks[t / block_size]
    Int block_size, heads, dims;
    Int block_stride, token_stride, head_stride;  // bytes
    Int cache_type, wire_type;                    // rows of CASTS
    Int wire_heads_first;
    Int converts;
    const float* cache_scales;  // [views, heads], or null
    const float* wire_scales;
};

extern "C" struct Part {  // views × tokens, and where they are on the wire
    Int first_view, num_views, first_token, num_tokens;
    Byte* wire;
};

// ---------------------------------------------------------------- rows: copied or cast, plainly or past the cache

// Rows shorter than this gain nothing from streaming stores: their ends are written plainly anyway.
constexpr Int SHORTEST_STREAM = 128;
// A call that writes less than this leaves it in the cache, where the next reader (a socket, a checksum) finds it.
constexpr Int SMALLEST_STREAM = 1 << 18;

// Whole cache lines, past the cache; `to` is aligned to 64.
inline void stream_lines(Byte* to, const Byte* from, Int lines) {
    for (Int i = 0; i < lines; ++i, to += 64, from += 64) {
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i*)to, _mm512_loadu_si512(from));
#elif defined(__AVX__)
        _mm256_stream_si256((__m256i*)to, _mm256_loadu_si256((const __m256i*)from));
        _mm256_stream_si256((__m256i*)to + 1, _mm256_loadu_si256((const __m256i*)from + 1));
#elif defined(__SSE2__)
        for (int j = 0; j < 4; ++j) _mm_stream_si128((__m128i*)to + j, _mm_loadu_si128((const __m128i*)from + j));
#else
        std::memcpy(to, from, 64);
#endif
    }
}

inline void stream_fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

inline void put(Byte* to, const Byte* from, Int size, bool stream) {
    if (!stream || size < SHORTEST_STREAM) {
        std::memcpy(to, from, size);
        return;
    }
    Int head = -(intptr_t)to & 63, lines = (size - head) / 64, tail = (size - head) % 64;
    if (head) std::memcpy(to, from, head);
    stream_lines(to + head, from + head, lines);
    if (tail) std::memcpy(to + size - tail, from + size - tail, tail);
}

// Neither side of a row need be aligned, hence the byte pointers.

template <class Type>
void widen_row(float* __restrict values, const Byte* __restrict from, Int count) {
    for (Int i = 0; i < count; ++i) {
        typename Type::Bits bits;
        std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
        values[i] = Type::widen(bits);
    }
}

template <class Type>
Int narrow_row(Byte* __restrict to, const Byte* __restrict values, Int count) {
    unsigned clamped = 0;
    for (Int i = 0; i < count; ++i) {
        float value;
        std::memcpy(&value, values + i * sizeof value, sizeof value);
        typename Type::Bits bits = narrow<Type>(value, clamped);
        std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
    }
    return clamped;
}

struct Cast {
    Int size;
    void (*widen)(float*, const Byte*, Int);  // null: they are float32
    Int (*narrow)(Byte*, const Byte*, Int);
};

const Cast CASTS[] = {
    {4, nullptr, narrow_row<Float32>},
    {2, widen_row<BFloat16>, narrow_row<BFloat16>},
    {2, widen_row<Float16>, narrow_row<Float16>},
    {1, widen_row<Float8E4M3FN>, narrow_row<Float8E4M3FN>},
    {1, widen_row<Float8E4M3FNUZ>, narrow_row<Float8E4M3FNUZ>},
};

void scale_row(float* values, Int count, const float* multiply, const float* divide) {
    if (multiply)
        for (Int i = 0; i < count; ++i) values[i] *= *multiply;
    if (divide)
        for (Int i = 0; i < count; ++i) values[i] /= *divide;
}

// ---------------------------------------------------------------- one direction of one call

struct Row {  // elements that lie together at both sides, and the scales of their head
    Byte* target;
    const Byte* source;
    Int count;
    const float *multiply, *divide;
};

class Mover {
  public:
    Mover(const Cache& cache, const Part& part, bool to_wire)
        : cache(cache), part(part), to_wire(to_wire), from(CASTS[to_wire ? cache.cache_type : cache.wire_type]),
          to(CASTS[to_wire ? cache.wire_type : cache.cache_type]),
          scales_from(to_wire ? cache.cache_scales : cache.wire_scales),
          scales_to(to_wire ? cache.wire_scales : cache.cache_scales) {
        Int row = cache.dims * CASTS[cache.wire_type].size;
        bool heads_first = cache.wire_heads_first;
        wire_token_stride = heads_first ? row : row * cache.heads;
        wire_head_stride = heads_first ? row * part.num_tokens : row;
        wire_view_stride = row * cache.heads * part.num_tokens;
        size = part.num_views * part.num_tokens * cache.heads * cache.dims * to.size;
        stream = size >= SMALLEST_STREAM;
    }

    // Tokens [start, stop) of all views' tokens laid end to end; returns how many elements were clamped.
    Int move(Int start, Int stop) const {
        Queue queue(*this);
        while (start < stop) {
            Int view = start / part.num_tokens, first = start % part.num_tokens;
            Int count = std::min(stop - start, part.num_tokens - first);
            move_view(view, first, first + count, queue);
            start += count;
        }
        queue.drain();
        if (stream) stream_fence();
        return queue.clamped;
    }

    Int size;  // bytes written

  private:
    // Rows wait here while their source is on its way from memory: the CPU's own prefetching stops at every page, and
    // gains nothing from rows that lie apart.
    class Queue {
      public:
        explicit Queue(const Mover& mover) : mover(mover) {}

        void push(const Row& row) {
            Int bytes = row.count * mover.from.size;
            for (Int i = 0; i < bytes; i += 64) __builtin_prefetch(row.source + i, 0, 2);
            waiting += bytes;
            rows[last++ % LENGTH] = row;
            while (waiting > AHEAD || last - first == LENGTH) pop();
        }
        void drain() {
            while (first < last) pop();
        }
        Int clamped = 0;

      private:
        void pop() {
            const Row& row = rows[first++ % LENGTH];
            waiting -= row.count * mover.from.size;
            clamped += mover.move_row(row);
        }
        static constexpr unsigned LENGTH = 64;
        static constexpr Int AHEAD = 16384;
        const Mover& mover;
        Row rows[LENGTH];
        unsigned first = 0, last = 0;
        Int waiting = 0;
    };

    struct Axis {
        Int count, from, to;  // strides in bytes
    };

    void move_view(Int view, Int start, Int stop, Queue& queue) const {
        while (start < stop) {
            Int count = piece(start, stop);
            Int token = part.first_token + start;
            Byte* paged = cache.views[part.first_view + view] +
                          cache.blocks[token / cache.block_size] * cache.block_stride +
                          token % cache.block_size * cache.token_stride;
            Byte* wire = part.wire + view * wire_view_stride + start * wire_token_stride;
            Row first{to_wire ? wire : paged, to_wire ? paged : wire, cache.dims, nullptr, nullptr};
            if (scales_from) first.multiply = scales_from + (part.first_view + view) * cache.heads;
            if (scales_to) first.divide = scales_to + (part.first_view + view) * cache.heads;
            move_piece(first, count, queue);
            start += count;
        }
    }

    // How many tokens from `start` on lie in the cache at equal distances.
    Int piece(Int start, Int stop) const {
        Int block = (part.first_token + start) / cache.block_size;
        Int end = (block + 1) * cache.block_size - part.first_token;
        if (cache.block_stride == cache.block_size * cache.token_stride)
            for (; end < stop && cache.blocks[block + 1] == cache.blocks[block] + 1; ++block) end += cache.block_size;
        return std::min(end, stop) - start;
    }

    // Head after head, token after token: whichever side has heads first, this is a few streams of ascending
    // addresses; the other way round, one side would be visited in leaps.
    void move_piece(const Row& first, Int num_tokens, Queue& queue) const {
        Axis tokens = axis(num_tokens, cache.token_stride, wire_token_stride);
        Axis heads = axis(cache.heads, cache.head_stride, wire_head_stride);
        Int count = first.count;
        if (merge(heads, count)) merge(tokens, count);
        for (Int i = 0; i < tokens.count; ++i)
            for (Int j = 0; j < heads.count; ++j) {
                Byte* target = first.target + i * tokens.to + j * heads.to;
                const Byte* source = first.source + i * tokens.from + j * heads.from;
                const float* multiply = first.multiply ? first.multiply + j : nullptr;
                const float* divide = first.divide ? first.divide + j : nullptr;
                for (Int done = 0; done < count; done += CHUNK)
                    queue.push({target + done * to.size, source + done * from.size, std::min(CHUNK, count - done),
                                multiply, divide});
            }
    }

    Axis axis(Int count, Int paged, Int wire) const {
        return to_wire ? Axis{count, paged, wire} : Axis{count, wire, paged};
    }

    // Whether rows of `count` elements along this axis are one longer row at both sides; then makes them that.
    bool merge(Axis& axis, Int& count) const {
        bool adjoin = axis.from == count * from.size && axis.to == count * to.size;
        if (axis.count > 1 && (!adjoin || scales_from || scales_to)) return false;
        count *= axis.count;
        axis.count = 1;
        return true;
    }

    Int move_row(const Row& row) const {
        if (!cache.converts) {
            put(row.target, row.source, row.count * from.size, stream);
            return 0;
        }
        alignas(64) float values[CHUNK];
        alignas(64) Byte narrowed[CHUNK * 4];
        const Byte* wide = row.source;
        if (from.widen || row.multiply || row.divide) {
            if (from.widen) from.widen(values, row.source, row.count);
            else std::memcpy(values, row.source, row.count * sizeof(float));
            scale_row(values, row.count, row.multiply, row.divide);
            wide = (const Byte*)values;
        }
        if (!stream) return to.narrow(row.target, wide, row.count);
        Int clamped = to.narrow(narrowed, wide, row.count);
        put(row.target, narrowed, row.count * to.size, true);
        return clamped;
    }

    static constexpr Int CHUNK = 256;  // elements; the values in between stay in the nearest cache

    const Cache& cache;
    const Part& part;
    const bool to_wire;
    const Cast &from, &to;
    const float *const scales_from, *const scales_to;
    Int wire_token_stride, wire_head_stride, wire_view_stride;
    bool stream;
};

// Threads take pieces of the work until none is left, so that one that has to wait for a core holds nobody up. Starting
// one costs some 20 µs; a piece takes several times that.
constexpr Int PIECE = 1 << 20;

}  // namespace

// Returns how many elements were clamped.
extern "C" Int pdmesh_copy(const Cache* cache, const Part* part, Int to_wire, Int max_threads) {
    const Mover mover(*cache, *part, to_wire);
    const Int tokens = part->num_views * part->num_tokens;
    const Int pieces = std::max<Int>(1, std::min(mover.size / PIECE, tokens));
    std::atomic<Int> next{0}, clamped{0};
    auto work = [&] {
        for (Int i; (i = next++) < pieces;) clamped += mover.move(tokens * i / pieces, tokens * (i + 1) / pieces);
    };
    std::vector<std::thread> helpers;
    try {
        for (Int i = 1; i < std::min(max_threads, pieces); ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // No more threads to be had: those that there are do it all.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    return clamped;
}
