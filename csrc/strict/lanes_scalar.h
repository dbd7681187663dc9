// SPDX-License-Identifier: MIT
//
// Lanes in an array. See lanes_isa.h.

#pragma once

#include "strict/math.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

struct Lanes {
  float v[kLanes];
};

GROUPEDMIXER_STRICT Lanes load(const float* p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = p[i];
  return out;
}
GROUPEDMIXER_STRICT void store(float* p, Lanes a) {
  for (int i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
GROUPEDMIXER_STRICT Lanes broadcast(float x) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = x;
  return out;
}
GROUPEDMIXER_STRICT Lanes fused(Lanes a, Lanes b, Lanes c) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::fused(a.v[i], b.v[i], c.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes operator+(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = a.v[i] + b.v[i];
  return out;
}
GROUPEDMIXER_STRICT Lanes operator-(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = a.v[i] - b.v[i];
  return out;
}
GROUPEDMIXER_STRICT Lanes operator*(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = a.v[i] * b.v[i];
  return out;
}
GROUPEDMIXER_STRICT Lanes operator/(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = a.v[i] / b.v[i];
  return out;
}
GROUPEDMIXER_STRICT Lanes square_root(Lanes a) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::square_root(a.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes larger(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::larger(a.v[i], b.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes smaller(Lanes a, Lanes b) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::smaller(a.v[i], b.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes absolute(Lanes a) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::absolute(a.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes where_positive(Lanes x, Lanes yes, Lanes no) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::where_positive(x.v[i], yes.v[i], no.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes times_power_of_two(Lanes x, Lanes n) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = strict::times_power_of_two(x.v[i], n.v[i]);
  return out;
}
GROUPEDMIXER_STRICT Lanes load_half(const uint16_t* p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = from_half(p[i]);
  return out;
}
GROUPEDMIXER_STRICT void store_half(uint16_t* p, Lanes a) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_half(a.v[i]);
}
// Lane i of row j becomes lane j of row i.
GROUPEDMIXER_STRICT void transpose(Lanes rows[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float kept = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = kept;
    }
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
