// SPDX-License-Identifier: MIT
//
// A layer's weights on a GPU, packed as for the CPU. For .cu files and headers that only they
// include.

#pragma once

#include "common/device_memory.h"
#include "strict/packed.h"

namespace groupedmixer::strict {

struct DeviceLinear {
  int64_t depth = 0;
  int64_t width = 0;
  DeviceArray<float> weight;  // [ceil(width / 32), depth, 32]
  DeviceArray<float> bias;    // [ceil(width / 32) * 32]

  DeviceLinear() = default;
  explicit DeviceLinear(const PackedLinear& packed)
      : depth(packed.depth), width(packed.width), weight(packed.weight), bias(packed.bias) {}
};

}  // namespace groupedmixer::strict
