// SPDX-License-Identifier: MIT
//
// Sixteen coder states in a vector, with AVX-512. A Mask has bit i for lane i.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "entropy/tables.h"

namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT {

#define GROUPEDMIXER_STATES static inline __attribute__((always_inline))

struct States {
  __m512i v;
};
using Mask = uint32_t;

GROUPEDMIXER_STATES States load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
GROUPEDMIXER_STATES void store(uint32_t* p, States a) { _mm512_storeu_si512(p, a.v); }
GROUPEDMIXER_STATES States load(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
GROUPEDMIXER_STATES States load(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
GROUPEDMIXER_STATES States load(const int16_t* p) {
  return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
GROUPEDMIXER_STATES void store(int16_t* p, States a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
GROUPEDMIXER_STATES States all(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
GROUPEDMIXER_STATES States operator+(States a, States b) { return {_mm512_add_epi32(a.v, b.v)}; }
GROUPEDMIXER_STATES States operator-(States a, States b) { return {_mm512_sub_epi32(a.v, b.v)}; }
GROUPEDMIXER_STATES States operator*(States a, States b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
GROUPEDMIXER_STATES States operator&(States a, States b) { return {_mm512_and_si512(a.v, b.v)}; }
GROUPEDMIXER_STATES States operator|(States a, States b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int Bits>
GROUPEDMIXER_STATES States shift_left(States a) {
  return {_mm512_slli_epi32(a.v, Bits)};
}
template <int Bits>
GROUPEDMIXER_STATES States shift_right(States a) {
  return {_mm512_srli_epi32(a.v, Bits)};
}
// Of the low 16 bits.
GROUPEDMIXER_STATES States sign_extended(States a) {
  return {_mm512_srai_epi32(_mm512_slli_epi32(a.v, 16), 16)};
}
GROUPEDMIXER_STATES Mask below(States a, States b) { return _mm512_cmplt_epu32_mask(a.v, b.v); }
GROUPEDMIXER_STATES States smaller(States a, States b) { return {_mm512_min_epu32(a.v, b.v)}; }

GROUPEDMIXER_STATES States gather(const void* base, States index) {  // of 4 bytes each
  return {_mm512_i32gather_epi32(index.v, base, 4)};
}
struct Pairs {
  States first, second;
};
GROUPEDMIXER_STATES Pairs gather_pairs(const void* base, States index) {  // of 8 bytes each
  const __m512i low = _mm512_i32gather_epi64(_mm512_castsi512_si256(index.v), base, 8);
  const __m512i high = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64(index.v, 1), base, 8);
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  return {{_mm512_permutex2var_epi32(low, even, high)},
          {_mm512_permutex2var_epi32(low, odd, high)}};
}

// The sum of all lanes, each below 2^32.
GROUPEDMIXER_STATES uint64_t total(States a) {
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(
      _mm512_and_si512(a.v, _mm512_set1_epi64(0xffffffff)), _mm512_srli_epi64(a.v, 32))));
}

// x << 16 | the next word, in the lanes of mask; reads 32 bytes at word.
GROUPEDMIXER_STATES States refill(States x, Mask mask, const uint8_t* word) {
  const __m512i words =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
  const auto lanes = static_cast<__mmask16>(mask);
  const __m512i fresh = _mm512_maskz_expand_epi32(lanes, words);
  return {_mm512_mask_or_epi32(x.v, lanes, _mm512_slli_epi32(x.v, 16), fresh)};
}

// Writes the low words of the lanes of mask in front of cursor, and returns x with them shifted
// out.
GROUPEDMIXER_STATES States spill(States x, Mask mask, uint8_t*& cursor) {
  const auto lanes = static_cast<__mmask16>(mask);
  const int count = __builtin_popcount(mask);
  cursor -= 2 * count;
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(lanes, x.v));
  _mm256_mask_storeu_epi16(cursor, static_cast<__mmask16>((1u << count) - 1), words);
  return {_mm512_mask_srli_epi32(x.v, lanes, x.v, 16)};
}

// (x / count << kPrecision) + x % count for x < count << 20 and 1 <= count < kTotal. With every
// operation rounded down the float quotient is at most the true one and less than 1 below it. What
// does not depend on x can be ready before x is: chains of states are what a round waits for.
GROUPEDMIXER_STATES States spread(States x, States count) {
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const __m512 reciprocal =
      _mm512_div_round_ps(_mm512_set1_ps(1.0f), _mm512_cvtepu32_ps(count.v), kDown);
  const __m512i gap = _mm512_sub_epi32(_mm512_set1_epi32(kTotal), count.v);
  const __m512 estimate =
      _mm512_mul_round_ps(_mm512_cvt_roundepu32_ps(x.v, kDown), reciprocal, kDown);
  const __m512i q = _mm512_cvtt_roundps_epu32(estimate, _MM_FROUND_NO_EXC);
  const __m512i rest = _mm512_sub_epi32(x.v, _mm512_mullo_epi32(q, count.v));
  const __m512i almost = _mm512_add_epi32(x.v, _mm512_mullo_epi32(q, gap));
  return {_mm512_mask_add_epi32(almost, _mm512_cmpge_epu32_mask(rest, count.v), almost, gap)};
}

}  // namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT
