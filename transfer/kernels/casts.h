// Element types of a KV cache and exact casts between them, for C++, CUDA and HIP alike.
//
// Everything is integer arithmetic on the bits of float32, apart from two additions that can meet no denormal result:
// so neither flush-to-zero modes nor the vector width change a bit.

#if defined(__CUDACC__) || defined(__HIPCC__) || defined(__CUDACC_RTC__) || defined(__HIPCC_RTC__)
#define PDMESH_INLINE static __device__ __forceinline__
PDMESH_INLINE float as_float(unsigned bits) { return __uint_as_float(bits); }
PDMESH_INLINE unsigned as_bits(float value) { return __float_as_uint(value); }
#else
#define PDMESH_INLINE static inline __attribute__((always_inline))
PDMESH_INLINE float as_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
PDMESH_INLINE unsigned as_bits(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
#endif

constexpr unsigned SIGN = 0x80000000u, INFINITE = 0x7f800000u, QUIET_NAN = 0x7fc00000u;

// A type of `mantissa` explicit bits and exponent bias `bias`; "magnitude" is a number's bits without the sign.
// Exponents may not be float32's own: bfloat16 needs none of this.
template <int mantissa, int bias>
struct Narrow {
    static constexpr int shift = 23 - mantissa;
    static constexpr unsigned smallest_normal = (128u - bias) << 23;  // as float32

    // To float32, exactly; `magnitude` is finite.
    PDMESH_INLINE unsigned widen(unsigned magnitude) {
        // A denormal is its mantissa over the smallest normal: put a 1 before it, and take that away again.
        float denormal = as_float((magnitude << shift) + smallest_normal) - as_float(smallest_normal);
        unsigned normal = (magnitude << shift) + ((127u - bias) << 23);
        return magnitude < (1u << mantissa) ? as_bits(denormal) : normal;
    }

    // From a float32 magnitude not above the largest of this type, to nearest, ties to even.
    PDMESH_INLINE unsigned round(unsigned magnitude) {
        // The last bit of `unit` weighs as much as a denormal's last bit, so the addition rounds there.
        constexpr unsigned unit = (151u - bias - mantissa) << 23;
        unsigned denormal = as_bits(as_float(magnitude) + as_float(unit)) - unit;
        unsigned even = (magnitude >> shift) & 1u;
        unsigned normal = ((magnitude + (1u << (shift - 1)) - 1u + even) >> shift) - ((127u - bias) << mantissa);
        return magnitude < smallest_normal ? denormal : normal;
    }
};

// Each type: `widen` to float32 (NaN to some NaN), `round` from a finite float32 magnitude that is at most `largest`.

struct Float32 {
    typedef unsigned Bits;
    static constexpr unsigned largest = 0x7f7fffffu, nan = QUIET_NAN;
    PDMESH_INLINE float widen(Bits bits) { return as_float(bits); }
    PDMESH_INLINE unsigned round(unsigned magnitude, unsigned sign) { return magnitude | sign; }
};

struct BFloat16 {
    typedef unsigned short Bits;
    static constexpr unsigned largest = 0x7f7f0000u, nan = 0x7fc0u;
    PDMESH_INLINE float widen(Bits bits) { return as_float((unsigned)bits << 16); }
    PDMESH_INLINE unsigned round(unsigned magnitude, unsigned sign) {
        return (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16 | sign >> 16;
    }
};

struct Float16 {
    typedef unsigned short Bits;
    static constexpr unsigned largest = 0x477fe000u, nan = 0x7e00u;
    PDMESH_INLINE float widen(Bits bits) {
        unsigned magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
        unsigned special = INFINITE | (magnitude & 0x3ffu) << 13;  // infinite or NaN
        return as_float((magnitude >= 0x7c00u ? special : Narrow<10, 15>::widen(magnitude)) | sign);
    }
    PDMESH_INLINE unsigned round(unsigned magnitude, unsigned sign) {
        return Narrow<10, 15>::round(magnitude) | sign >> 16;
    }
};

struct Float8E4M3FN {  // no infinity; 0x7f and 0xff are NaN
    typedef unsigned char Bits;
    static constexpr unsigned largest = 0x43e00000u, nan = 0x7fu;
    PDMESH_INLINE float widen(Bits bits) {
        unsigned magnitude = bits & 0x7fu, sign = (bits & 0x80u) << 24;
        return as_float((magnitude == 0x7fu ? QUIET_NAN : Narrow<3, 7>::widen(magnitude)) | sign);
    }
    PDMESH_INLINE unsigned round(unsigned magnitude, unsigned sign) {
        return Narrow<3, 7>::round(magnitude) | sign >> 24;
    }
};

struct Float8E4M3FNUZ {  // no infinity, no negative zero; its bits are NaN
    typedef unsigned char Bits;
    static constexpr unsigned largest = 0x43700000u, nan = 0x80u;
    PDMESH_INLINE float widen(Bits bits) {
        unsigned sign = (bits & 0x80u) << 24;
        return as_float(bits == 0x80u ? QUIET_NAN : Narrow<3, 8>::widen(bits & 0x7fu) | sign);
    }
    PDMESH_INLINE unsigned round(unsigned magnitude, unsigned sign) {
        unsigned rounded = Narrow<3, 8>::round(magnitude);
        return rounded == 0u ? 0u : rounded | sign >> 24;
    }
};

// The contract's cast(clamp(value)); adds 1 to `clamped` where it had to clamp.
template <class Type>
PDMESH_INLINE typename Type::Bits narrow(float value, unsigned& clamped) {
    unsigned bits = as_bits(value), sign = bits & SIGN, magnitude = bits & ~SIGN;
    clamped += magnitude > Type::largest && magnitude <= INFINITE;
    unsigned rounded = Type::round(magnitude < Type::largest ? magnitude : Type::largest, sign);
    return (typename Type::Bits)(magnitude > INFINITE ? Type::nan : rounded);
}
