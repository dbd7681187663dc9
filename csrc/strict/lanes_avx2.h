// SPDX-License-Identifier: MIT
//
// Lanes in two ymm registers. See lanes_isa.h.

#pragma once

#include <immintrin.h>

#include "strict/math.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

struct Lanes {
  __m256 v[2];
};

GROUPEDMIXER_STRICT Lanes load(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}};
}
GROUPEDMIXER_STRICT void store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
GROUPEDMIXER_STRICT Lanes broadcast(float x) {
  const __m256 all = _mm256_set1_ps(x);
  return {{all, all}};
}
GROUPEDMIXER_STRICT Lanes fused(Lanes a, Lanes b, Lanes c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
GROUPEDMIXER_STRICT Lanes operator+(Lanes a, Lanes b) {
  return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes operator-(Lanes a, Lanes b) {
  return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes operator*(Lanes a, Lanes b) {
  return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes operator/(Lanes a, Lanes b) {
  return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes square_root(Lanes a) {
  return {{_mm256_sqrt_ps(a.v[0]), _mm256_sqrt_ps(a.v[1])}};
}
// max and min instructions return their second operand where the comparison is false, as wanted.
GROUPEDMIXER_STRICT Lanes larger(Lanes a, Lanes b) {
  return {{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes smaller(Lanes a, Lanes b) {
  return {{_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])}};
}
GROUPEDMIXER_STRICT Lanes absolute(Lanes a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {{_mm256_andnot_ps(sign, a.v[0]), _mm256_andnot_ps(sign, a.v[1])}};
}
GROUPEDMIXER_STRICT Lanes where_positive(Lanes x, Lanes yes, Lanes no) {
  Lanes out;
  for (int i = 0; i < 2; ++i) {
    const __m256 positive = _mm256_cmp_ps(x.v[i], _mm256_setzero_ps(), _CMP_GT_OQ);
    out.v[i] = _mm256_blendv_ps(no.v[i], yes.v[i], positive);
  }
  return out;
}
GROUPEDMIXER_STRICT Lanes times_power_of_two(Lanes x, Lanes n) {
  Lanes out;
  for (int i = 0; i < 2; ++i) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvttps_epi32(n.v[i]), 23);
    out.v[i] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v[i]), exponent));
  }
  return out;
}
GROUPEDMIXER_STRICT Lanes load_half(const uint16_t* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))}};
}
GROUPEDMIXER_STRICT void store_half(uint16_t* p, Lanes a) {
  auto* halves = reinterpret_cast<__m128i*>(p);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(halves, _mm256_cvtps_ph(a.v[0], kNearest));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.v[1], kNearest));
}
// Lane i of row j becomes lane j of row i.
GROUPEDMIXER_STRICT void transpose(Lanes rows[kLanes]) {
  // The four 8x8 quarters on their own, then the two off the diagonal trade places.
  for (int top = 0; top < kLanes; top += 8) {
    for (int half = 0; half < 2; ++half) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(rows[top + i].v[half], rows[top + i + 1].v[half]);
        a[i + 1] = _mm256_unpackhi_ps(rows[top + i].v[half], rows[top + i + 1].v[half]);
      }
      for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        rows[top + i].v[half] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        rows[top + i + 4].v[half] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
      }
    }
  }
  for (int i = 0; i < 8; ++i) {
    const __m256 kept = rows[i].v[1];
    rows[i].v[1] = rows[8 + i].v[0];
    rows[8 + i].v[0] = kept;
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
