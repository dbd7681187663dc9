// SPDX-License-Identifier: MIT

#include "strict/lanes_isa.h"
#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

void compand_all(const MapParams& p) {
  int64_t i = 0;
  for (; i + kLanes <= p.count; i += kLanes) store(p.out + i, compand(load(p.x + i)));
  for (; i < p.count; ++i) p.out[i] = compand(p.x[i]);
}

void leaky_relu_all(const MapParams& p) {
  int64_t i = 0;
  for (; i + kLanes <= p.count; i += kLanes) store(p.out + i, leaky_relu(load(p.x + i)));
  for (; i < p.count; ++i) p.out[i] = leaky_relu(p.x[i]);
}

void half_tanh_all(const MapParams& p) {
  int64_t i = 0;
  const Lanes half = broadcast(0.5f);
  for (; i + kLanes <= p.count; i += kLanes) {
    store(p.out + i, fused(hyperbolic_tangent(load(p.x + i)), half, load(p.out + i)));
  }
  for (; i < p.count; ++i) {
    p.out[i] = strict::fused(hyperbolic_tangent(p.x[i]), 0.5f, p.out[i]);
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
