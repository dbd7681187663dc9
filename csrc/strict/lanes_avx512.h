// SPDX-License-Identifier: MIT
//
// Lanes in one zmm register. See lanes_isa.h.

#pragma once

#include <immintrin.h>

#include "strict/math.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

struct Lanes {
  __m512 v;
};

GROUPEDMIXER_STRICT Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
GROUPEDMIXER_STRICT void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
GROUPEDMIXER_STRICT Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
GROUPEDMIXER_STRICT Lanes fused(Lanes a, Lanes b, Lanes c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
GROUPEDMIXER_STRICT Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes square_root(Lanes a) { return {_mm512_sqrt_ps(a.v)}; }
// max and min instructions return their second operand where the comparison is false, as wanted.
GROUPEDMIXER_STRICT Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
GROUPEDMIXER_STRICT Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.v)}; }
GROUPEDMIXER_STRICT Lanes where_positive(Lanes x, Lanes yes, Lanes no) {
  const __mmask16 positive = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ);
  return {_mm512_mask_blend_ps(positive, no.v, yes.v)};
}
GROUPEDMIXER_STRICT Lanes times_power_of_two(Lanes x, Lanes n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvttps_epi32(n.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), exponent))};
}
GROUPEDMIXER_STRICT Lanes load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
GROUPEDMIXER_STRICT void store_half(uint16_t* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Lane i of row j becomes lane j of row i.
GROUPEDMIXER_STRICT void transpose(Lanes rows[kLanes]) {
  __m512 a[kLanes], b[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < kLanes; i += 4) {
    const auto low = [](__m512 x, __m512 y) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    const auto high = [](__m512 x, __m512 y) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    b[i] = low(a[i], a[i + 2]);
    b[i + 1] = high(a[i], a[i + 2]);
    b[i + 2] = low(a[i + 1], a[i + 3]);
    b[i + 3] = high(a[i + 1], a[i + 3]);
  }
  // Quarters: b[4 r + c] holds column c + 4 q of rows 4 r .. 4 r + 3 in quarter q.
  for (int c = 0; c < 4; ++c) {
    const __m512 x = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
    const __m512 y = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 z = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 w = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c].v = _mm512_shuffle_f32x4(x, y, 0x88);
    rows[4 + c].v = _mm512_shuffle_f32x4(z, w, 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(x, y, 0xdd);
    rows[12 + c].v = _mm512_shuffle_f32x4(z, w, 0xdd);
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
