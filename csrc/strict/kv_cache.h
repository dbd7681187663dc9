// SPDX-License-Identifier: MIT
//
// The context cache of one block and one tile, and the only place that knows its layout: tokens in
// blocks of 16, one a lane; then head, keys or values, step, dimension. What a query reads is
// contiguous, (step + 1) KiB of keys and as much of values, and holds no steps to come.

#pragma once

#include <cstdint>

#include "strict/kernels.h"

namespace groupedmixer::strict {

struct KvCache {
  int64_t heads;
  int64_t capacity;  // G, steps

  // In uint16_t, binary16 numbers.
  static constexpr int64_t kStep = kHeadDim * kTokenBlock;
  constexpr int64_t values_offset() const { return capacity * kStep; }
  constexpr int64_t head_size() const { return 2 * capacity * kStep; }
  constexpr int64_t block_size() const { return heads * head_size(); }
  constexpr int64_t size(int64_t tokens) const {
    return (tokens + kTokenBlock - 1) / kTokenBlock * block_size();
  }
};

}  // namespace groupedmixer::strict
