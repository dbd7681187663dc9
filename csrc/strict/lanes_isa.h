// SPDX-License-Identifier: MIT
//
// Lanes: sixteen floats, the vector that all *_isa.cpp kernels are written with. The width is 16 in
// every variant because lane sums have 16 lanes; variants differ in how many registers that takes
// and in the tile that gemm_isa.h keeps in them.
//
// Included by *_isa.cpp only.

#pragma once

#if defined(__AVX512F__)
#include "strict/lanes_avx512.h"
#elif defined(__AVX2__)
#include "strict/lanes_avx2.h"
#else
#include "strict/lanes_scalar.h"
#endif

namespace groupedmixer::strict {

template <>
struct Broadcast<GROUPEDMIXER_VARIANT::Lanes> {
  GROUPEDMIXER_STRICT GROUPEDMIXER_VARIANT::Lanes of(float x) {
    return GROUPEDMIXER_VARIANT::broadcast(x);
  }
};

namespace GROUPEDMIXER_VARIANT {

// Those of math.h for single floats, which the ones for Lanes would hide.
using strict::absolute;
using strict::fused;
using strict::larger;
using strict::smaller;
using strict::square_root;
using strict::times_power_of_two;
using strict::where_positive;

// lane_sum of docs/numerics.md, once the lanes are added up: the tree.
GROUPEDMIXER_STRICT float add_lanes(Lanes sums) {
  float lane[kLanes];
  store(lane, sums);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lane[j] = lane[j] + lane[j + half];
  }
  return lane[0];
}

}  // namespace GROUPEDMIXER_VARIANT
}  // namespace groupedmixer::strict
