// Sixteen floats at a time, in GCC's vector extension (clang has it too): any CPU, the widest registers it has.
#pragma once

#include <cstdint>
#include <cstring>

namespace pdmesh {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));

struct BFloat16 {
  uint16_t bits;
};

inline Floats all(float value) { return Floats{} + value; }

template <typename T>
inline Floats load(const T* from);

template <>
inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <>
inline Floats load(const BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// To the nearest, ties to even, as torch does; a NaN stays one.
inline Words rounded(Floats value) {
  Words bits = (Words)value;
  Words up = bits + 0x7fff + ((bits >> 16) & 1);
  return (value != value) ? (bits | 0x00400000) : up;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline void store(BFloat16* to, Floats value) {
  Halves bits = __builtin_convertvector(rounded(value) >> 16, Halves);
  std::memcpy(to, &bits, sizeof bits);
}

// What is left of `value` after a store as T and a load.
template <typename T>
inline Floats as(Floats value);

template <>
inline Floats as<float>(Floats value) {
  return value;
}

template <>
inline Floats as<BFloat16>(Floats value) {
  return (Floats)(rounded(value) & 0xffff0000);
}

inline float sum(Floats value) {
  Floats8 low, high;
  std::memcpy(&low, &value, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
  Floats8 eight = low + high;
  Floats4 first, second;
  std::memcpy(&first, &eight, sizeof first);
  std::memcpy(&second, reinterpret_cast<const char*>(&eight) + sizeof first, sizeof second);
  Floats4 four = first + second;
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline Floats at_most(Floats value, Floats bound) { return value < bound ? value : bound; }
inline Floats at_least(Floats value, Floats bound) { return value > bound ? value : bound; }

// e^x to about two units in the last place: 2^n · e^r, |r| <= ln 2 / 2 (the polynomial is Cephes's expf).
// Zero below -87.3, where float's normal numbers end; infinite above 88.7.
inline Floats exponential(Floats x) {
  Floats bounded = at_least(at_most(x, all(89.0f)), all(-104.0f));
  Floats scaled = bounded * 1.44269504088896341f;
  // Adding 1.5 · 2^23 leaves the nearest whole number in the low bits.
  Floats shifted = scaled + 12582912.0f;
  Floats whole = shifted - 12582912.0f;
  Ints exponent = (Ints)shifted - (Ints)all(12582912.0f);
  Floats r = bounded - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  Floats value = (p * (r * r) + r) + 1.0f;
  // Two steps, so that 2^128 · (a number below 1) does not overflow.
  Ints half = exponent >> 1;
  Floats result = value * (Floats)((half + 127) << 23) * (Floats)((exponent - half + 127) << 23);
  result = (x < -87.33655f) ? all(0.0f) : result;
  return (x != x) ? x : result;
}

}  // namespace pdmesh
