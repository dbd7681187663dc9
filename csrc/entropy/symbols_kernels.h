// SPDX-License-Identifier: MIT
//
// What symbols_isa.cpp exports, once per ISA variant.

#pragma once

#include "entropy/symbols.h"

namespace groupedmixer::entropy {

struct SymbolKernels {
  uint32_t (*quantize_group)(const QuantizeGroupParams& params);
  uint32_t (*scale_indexes)(const ScaleIndexesParams& params);
  void (*dequantize_group)(const DequantizeGroupParams& params);
};

}  // namespace groupedmixer::entropy
