// SPDX-License-Identifier: MIT
//
// docs/numerics.md, section 1 to 3, in code. Everything that a stream depends on is computed with
// the functions of this header, on the host and on a device.
//
//   - The templates take V = float or a vector of floats (lanes_isa.h): one text, so that a scalar
//     loop, a SIMD kernel and a CUDA thread cannot drift apart.
//   - Nothing here may be contracted: builds pass -ffp-contract=off and --fmad=false.
//   - All is static inline: each ISA variant keeps a copy compiled with its own flags.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GROUPEDMIXER_STRICT static __host__ __device__ __forceinline__
#else
#define GROUPEDMIXER_STRICT static inline __attribute__((always_inline))
#endif

namespace groupedmixer::strict {

constexpr int kLanes = 16;     // of a lane sum
constexpr int kSegment = 128;  // of a dot product
constexpr int kHeadDim = 32;
constexpr int kWindow = 8;

constexpr float kAttentionScale = 0x1.6a09e6p-3f;  // 1 / sqrt(32)
constexpr float kNormEpsilon = 0x1.0c6f7ap-20f;    // 1e-6
constexpr float kLeakySlope = 0x1.47ae14p-7f;      // 0.01
constexpr float kMaxHalf = 65504.0f;

// ---- elements: V = float ------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
GROUPEDMIXER_STRICT float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// For processors without the instruction. The product is exact in binary64; rounding the sum there
// and then to binary32 goes wrong only where the first rounding ends on a midpoint of the second,
// or below the normal numbers, where midpoints lie elsewhere. Then the sum is rounded to odd
// instead.
static inline float fused_with_care(double product, double addend) {
  double sum = product + addend;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (addend - back);
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  const bool inexact = error > 0 || error < 0;  // false for NaN, which infinite sums lead to
  if (inexact && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : ~uint64_t{0};
  std::memcpy(&sum, &bits, sizeof(sum));
  return static_cast<float>(sum);
}
GROUPEDMIXER_STRICT float fused(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double sum = product + static_cast<double>(c);
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  const bool midpoint = (bits & 0x1fffffffu) == 0x10000000u;
  const bool small = (bits >> 52 & 0x7ff) < 1023 - 126;
  if (__builtin_expect(midpoint || small, 0)) return fused_with_care(product, c);
  return static_cast<float>(sum);
}
#endif

GROUPEDMIXER_STRICT float square_root(float x) { return __builtin_sqrtf(x); }
GROUPEDMIXER_STRICT float larger(float a, float b) { return a > b ? a : b; }
GROUPEDMIXER_STRICT float smaller(float a, float b) { return a < b ? a : b; }
GROUPEDMIXER_STRICT float absolute(float x) { return __builtin_fabsf(x); }
GROUPEDMIXER_STRICT float where_positive(float x, float yes, float no) { return x > 0 ? yes : no; }

// x * 2^n for a whole number n that leaves x and the result normal.
GROUPEDMIXER_STRICT float times_power_of_two(float x, float n) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits += static_cast<int32_t>(n) * (1 << 23);
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

// The same value in all lanes.
template <typename V>
struct Broadcast {
  GROUPEDMIXER_STRICT V of(float x) { return V(x); }
};

// ---- functions ----------------------------------------------------------------------------------

// Half to even, for |x| <= 2^22.
template <typename V>
GROUPEDMIXER_STRICT V round_half_even(V x) {
  const V rounder = Broadcast<V>::of(0x1.8p23f);
  return (x + rounder) - rounder;
}

template <typename V>
GROUPEDMIXER_STRICT V exponential(V x) {
  const auto c = [](float value) { return Broadcast<V>::of(value); };
  x = smaller(larger(x, c(-86.0f)), c(86.0f));
  const V n = round_half_even(x * c(0x1.715476p+0f));
  const V r = fused(n, c(0x1.05c61p-29f), fused(n, c(-0x1.62e43p-1f), x));
  V p = c(0x1.6a50bep-10f);
  p = fused(p, r, c(0x1.123976p-7f));
  p = fused(p, r, c(0x1.5558acp-5f));
  p = fused(p, r, c(0x1.555492p-3f));
  p = fused(p, r, c(0x1.fffffcp-2f));
  return times_power_of_two(c(1.0f) + fused(p, r * r, r), n);
}

// The tanh form.
template <typename V>
GROUPEDMIXER_STRICT V gelu(V x) {
  const auto c = [](float value) { return Broadcast<V>::of(value); };
  const V u = x * fused(x * x, c(-0x1.2444f2p-4f), c(-0x1.988454p+0f));
  return x / (c(1.0f) + exponential(u));
}

template <typename V>
GROUPEDMIXER_STRICT V hyperbolic_tangent(V x) {
  const auto c = [](float value) { return Broadcast<V>::of(value); };
  return c(1.0f) - c(2.0f) / (c(1.0f) + exponential(c(2.0f) * x));
}

template <typename V>
GROUPEDMIXER_STRICT V compand(V x) {
  return x / square_root(Broadcast<V>::of(1.0f) + absolute(x));
}

template <typename V>
GROUPEDMIXER_STRICT V leaky_relu(V x) {
  return where_positive(x, x, x * Broadcast<V>::of(kLeakySlope));
}

// Into the range of binary16, ahead of rounding to it.
template <typename V>
GROUPEDMIXER_STRICT V clamp_to_half(V x) {
  return smaller(larger(x, Broadcast<V>::of(-kMaxHalf)), Broadcast<V>::of(kMaxHalf));
}

// ---- binary16 in a uint16_t: V = float
// --------------------------------------------------------------

// Exact.
GROUPEDMIXER_STRICT float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  value *= 0x1p112f;  // re-biases the exponent; exact for subnormal numbers too
  std::memcpy(&bits, &value, sizeof(bits));
  bits |= sign;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounds half to even; |x| <= 65504.
GROUPEDMIXER_STRICT uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits < 0x38800000u) {  // below 2^-14: subnormal, in steps of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;  // a step of 2^-24 is the last place of numbers in [0.5, 1)
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

}  // namespace groupedmixer::strict
