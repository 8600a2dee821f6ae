// Gather and scatter between a paged KV cache on a GPU and wire memory on it, converting on the way where asked.
//
// Compiled at run time by NVRTC or hipRTC behind casts.h, with CACHE and WIRE as the names of element types there,
// CONVERTS and WIRE_HEADS_FIRST as 0 or 1.  cupy_kernel.py checks every argument.
//
// One thread per element: neighbours read and write neighbours, and the link to the host is an order of magnitude
// slower than the memory, so that nothing is gained by more.

struct Place {  // one element, in the order of the wire
    long long view, token, head, dim;
};

PDMESH_INLINE Place place_of(long long element, long long num_tokens, long long heads, long long dims) {
    Place place;
    place.dim = element % dims;
    element /= dims;
#if WIRE_HEADS_FIRST
    place.token = element % num_tokens;
    element /= num_tokens;
    place.head = element % heads;
    place.view = element / heads;
#else
    place.head = element % heads;
    element /= heads;
    place.token = element % num_tokens;
    place.view = element / num_tokens;
#endif
    return place;
}

// CuPy compiles everything so that denormal float32 results, and operands, count as zero. Scales are therefore applied
// in double, which has no such mode, and to which a denormal is brought by its bits. Rounding twice, to double and then
// to float32, gives what rounding once gives: for one product or quotient of float32 numbers double is wide enough.
PDMESH_INLINE double exact(float value) {
    unsigned bits = as_bits(value), magnitude = bits & ~SIGN;
    if (magnitude >= 0x00800000u) return value;
    double denormal = magnitude * 0x1p-149;
    return bits & SIGN ? -denormal : denormal;
}

PDMESH_INLINE float nearest(double value) {
    if (!(value < 0x1p-126 && value > -0x1p-126)) return (float)value;
    return as_float((unsigned)rint(fabs(value) * 0x1p149) | (signbit(value) ? SIGN : 0u));
}

template <class From, class To>
PDMESH_INLINE typename To::Bits convert(typename From::Bits bits, const float* multiply, const float* divide,
                                        long long scale, unsigned& clamped) {
    float value = From::widen(bits);
    if (multiply) value = nearest(exact(value) * exact(multiply[scale]));
    if (divide) value = nearest(exact(value) / exact(divide[scale]));
    return narrow<To>(value, clamped);
}

PDMESH_INLINE void move(CACHE::Bits& paged, WIRE::Bits& wire, bool to_wire, const float* cache_scales,
                        const float* wire_scales, long long scale, unsigned& clamped) {
#if CONVERTS
    if (to_wire) wire = convert<CACHE, WIRE>(paged, cache_scales, wire_scales, scale, clamped);
    else paged = convert<WIRE, CACHE>(wire, wire_scales, cache_scales, scale, clamped);
#else
    if (to_wire) wire = paged;
    else paged = wire;
#endif
}

// Strides are in elements. `views` are addresses; scales are float32 [views, heads] or null; `total` elements move.
extern "C" __global__ void pdmesh_copy(
    const unsigned long long* views, const long long* blocks, const float* cache_scales, const float* wire_scales,
    WIRE::Bits* wire, unsigned long long* total_clamped, long long total, long long to_wire, long long first_view,
    long long first_token, long long num_tokens, long long block_size, long long heads, long long dims,
    long long block_stride, long long token_stride, long long head_stride) {
    unsigned clamped = 0;
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        Place place = place_of(i, num_tokens, heads, dims);
        long long view = first_view + place.view, token = first_token + place.token;
        CACHE::Bits* paged = (CACHE::Bits*)views[view] + blocks[token / block_size] * block_stride +
                             token % block_size * token_stride + place.head * head_stride + place.dim;
        move(*paged, wire[i], to_wire != 0, cache_scales, wire_scales, view * heads + place.head, clamped);
    }
    if (clamped) atomicAdd(total_clamped, (unsigned long long)clamped);
}
