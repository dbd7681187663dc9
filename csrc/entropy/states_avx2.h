// SPDX-License-Identifier: MIT
//
// Sixteen coder states in two vectors, with AVX2. A Mask has bit i for lane i.

#pragma once

#include <immintrin.h>

#include <array>
#include <cstdint>

#include "entropy/tables.h"

namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT {

#define GROUPEDMIXER_STATES static inline __attribute__((always_inline))

struct States {
  __m256i v[2];
};
using Mask = uint32_t;

// Where the words of a mask's lanes are, and where the lanes of a mask are when they move to the
// end: a permutation of 8 lanes for every mask.
struct Permutation {
  uint8_t lane[8];
};
using Permutations = std::array<Permutation, 256>;

constexpr Permutations make_expansions() {
  Permutations all{};
  for (int mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (int i = 0; i < 8; ++i) {
      if (mask >> i & 1) all[static_cast<size_t>(mask)].lane[i] = next++;
    }
  }
  return all;
}

constexpr Permutations make_compressions() {
  Permutations all{};
  for (int mask = 0; mask < 256; ++mask) {
    int next = 8;
    for (int i = 7; i >= 0; --i) {
      if (mask >> i & 1) all[static_cast<size_t>(mask)].lane[--next] = static_cast<uint8_t>(i);
    }
  }
  return all;
}

constexpr Permutations kExpansions = make_expansions();
constexpr Permutations kCompressions = make_compressions();

GROUPEDMIXER_STATES __m256i load_permutation(const Permutations& permutations, Mask mask) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(
      reinterpret_cast<const __m128i*>(permutations[static_cast<size_t>(mask)].lane)));
}
GROUPEDMIXER_STATES __m128i load_16(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
GROUPEDMIXER_STATES Mask mask_of(__m256i a, __m256i b) {
  return static_cast<Mask>(_mm256_movemask_ps(_mm256_castsi256_ps(a))) |
         static_cast<Mask>(_mm256_movemask_ps(_mm256_castsi256_ps(b))) << 8;
}
// All ones in the lanes of the low 8 bits of a mask.
GROUPEDMIXER_STATES __m256i lanes_of(Mask mask) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits);
  return _mm256_cmpeq_epi32(set, bits);
}

GROUPEDMIXER_STATES States load(const uint32_t* p) {
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))}};
}
GROUPEDMIXER_STATES void store(uint32_t* p, States a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.v[1]);
}
GROUPEDMIXER_STATES States load(const uint8_t* p) {
  const __m128i bytes = load_16(p);
  return {{_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))}};
}
GROUPEDMIXER_STATES States load(const uint16_t* p) {
  return {{_mm256_cvtepu16_epi32(load_16(p)), _mm256_cvtepu16_epi32(load_16(p + 8))}};
}
GROUPEDMIXER_STATES States load(const int16_t* p) {
  return {{_mm256_cvtepi16_epi32(load_16(p)), _mm256_cvtepi16_epi32(load_16(p + 8))}};
}
// Of lanes within int16.
GROUPEDMIXER_STATES void store(int16_t* p, States a) {
  const __m256i packed = _mm256_packs_epi32(a.v[0], a.v[1]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
GROUPEDMIXER_STATES States all(uint32_t x) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(x));
  return {{v, v}};
}
GROUPEDMIXER_STATES States operator+(States a, States b) {
  return {{_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STATES States operator-(States a, States b) {
  return {{_mm256_sub_epi32(a.v[0], b.v[0]), _mm256_sub_epi32(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STATES States operator*(States a, States b) {
  return {{_mm256_mullo_epi32(a.v[0], b.v[0]), _mm256_mullo_epi32(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STATES States operator&(States a, States b) {
  return {{_mm256_and_si256(a.v[0], b.v[0]), _mm256_and_si256(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STATES States operator|(States a, States b) {
  return {{_mm256_or_si256(a.v[0], b.v[0]), _mm256_or_si256(a.v[1], b.v[1])}};
}
template <int Bits>
GROUPEDMIXER_STATES States shift_left(States a) {
  return {{_mm256_slli_epi32(a.v[0], Bits), _mm256_slli_epi32(a.v[1], Bits)}};
}
template <int Bits>
GROUPEDMIXER_STATES States shift_right(States a) {
  return {{_mm256_srli_epi32(a.v[0], Bits), _mm256_srli_epi32(a.v[1], Bits)}};
}
// Of the low 16 bits.
GROUPEDMIXER_STATES States sign_extended(States a) {
  return {{_mm256_srai_epi32(_mm256_slli_epi32(a.v[0], 16), 16),
           _mm256_srai_epi32(_mm256_slli_epi32(a.v[1], 16), 16)}};
}
GROUPEDMIXER_STATES States smaller(States a, States b) {
  return {{_mm256_min_epu32(a.v[0], b.v[0]), _mm256_min_epu32(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STATES Mask below(States a, States b) {
  const States least = smaller(a, b);  // a < b unless b is the smaller one of the two
  return 0xffffu ^
         mask_of(_mm256_cmpeq_epi32(least.v[0], b.v[0]), _mm256_cmpeq_epi32(least.v[1], b.v[1]));
}

GROUPEDMIXER_STATES States gather(const void* base, States index) {  // of 4 bytes each
  const int* values = static_cast<const int*>(base);
  return {{_mm256_i32gather_epi32(values, index.v[0], 4),
           _mm256_i32gather_epi32(values, index.v[1], 4)}};
}
struct Pairs {
  States first, second;
};
GROUPEDMIXER_STATES Pairs gather_pairs(const void* base, States index) {  // of 8 bytes each
  Pairs pairs;
  for (int half = 0; half < 2; ++half) {
    const long long* values = static_cast<const long long*>(base);
    const __m128i index_low = _mm256_castsi256_si128(index.v[half]);
    const __m128i index_high = _mm256_extracti128_si256(index.v[half], 1);
    const __m256 low = _mm256_castsi256_ps(_mm256_i32gather_epi64(values, index_low, 8));
    const __m256 high = _mm256_castsi256_ps(_mm256_i32gather_epi64(values, index_high, 8));
    // Within 128 bits: a0 a2 b0 b2, so the middle quarters of 64 bits change places.
    const __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
    const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
    pairs.first.v[half] = _mm256_permute4x64_epi64(even, 0xd8);
    pairs.second.v[half] = _mm256_permute4x64_epi64(odd, 0xd8);
  }
  return pairs;
}

// The sum of all lanes, each below 2^32.
GROUPEDMIXER_STATES uint64_t total(States a) {
  alignas(32) uint32_t lane[16];
  store(lane, a);
  uint64_t sum = 0;
  for (const uint32_t value : lane) sum += value;
  return sum;
}

// x << 16 | the next word, in the lanes of mask; reads 32 bytes at word.
GROUPEDMIXER_STATES States refill(States x, Mask mask, const uint8_t* word) {
  for (__m256i& v : x.v) {
    const __m256i words = _mm256_cvtepu16_epi32(load_16(word));
    const __m256i fresh =
        _mm256_permutevar8x32_epi32(words, load_permutation(kExpansions, mask & 0xff));
    const __m256i full = _mm256_or_si256(_mm256_slli_epi32(v, 16), fresh);
    v = _mm256_blendv_epi8(v, full, lanes_of(mask & 0xff));
    word += 2 * __builtin_popcount(mask & 0xff);
    mask >>= 8;
  }
  return x;
}

// Writes the low words of the lanes of mask in front of cursor, and returns x with them shifted
// out. Overwrites 16 bytes in front of the words.
GROUPEDMIXER_STATES States spill(States x, Mask mask, uint8_t*& cursor) {
  for (int half = 1; half >= 0; --half) {
    const Mask lanes = mask >> 8 * half & 0xff;
    const __m256i low = _mm256_and_si256(x.v[half], _mm256_set1_epi32(0xffff));
    const __m256i moved = _mm256_permutevar8x32_epi32(low, load_permutation(kCompressions, lanes));
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(moved), _mm256_extracti128_si256(moved, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(cursor - 16), words);
    cursor -= 2 * __builtin_popcount(lanes);
    x.v[half] = _mm256_blendv_epi8(x.v[half], _mm256_srli_epi32(x.v[half], 16), lanes_of(lanes));
  }
  return x;
}

// (x / count << kPrecision) + x % count for x < count << 20 and 1 <= count < kTotal. Four
// operations that round in any direction err by less than 2^-21 of a quotient below 2^20: it is one
// too large or one too small at most. What does not depend on x can be ready before x is: chains of
// states are what a round waits for.
GROUPEDMIXER_STATES States spread(States x, States count) {
  States result;
  for (int half = 0; half < 2; ++half) {
    const __m256i v = x.v[half], c = count.v[half];
    const __m256 reciprocal = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_cvtepi32_ps(c));
    const __m256i gap = _mm256_sub_epi32(_mm256_set1_epi32(kTotal), c);
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(v, 16));
    const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)));
    const __m256 number = _mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0f)), low);
    const __m256i q = _mm256_cvttps_epi32(_mm256_mul_ps(number, reciprocal));
    const __m256i rest = _mm256_sub_epi32(v, _mm256_mullo_epi32(q, c));
    const __m256i almost = _mm256_add_epi32(v, _mm256_mullo_epi32(q, gap));
    const __m256i too_large = _mm256_cmpgt_epi32(_mm256_setzero_si256(), rest);
    const __m256i fits = _mm256_cmpgt_epi32(c, rest);  // or q is too small
    result.v[half] = _mm256_add_epi32(_mm256_sub_epi32(almost, _mm256_and_si256(too_large, gap)),
                                      _mm256_andnot_si256(fits, gap));
  }
  return result;
}

}  // namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT
