// SPDX-License-Identifier: MIT

#include "entropy/symbols.h"

#include "common/float_mode.h"
#include "common/isa.h"
#include "entropy/symbols_kernels.h"

namespace groupedmixer::entropy {

GROUPEDMIXER_DECLARE_VARIANTS(SymbolKernels, symbol_kernels)

uint32_t quantize_group(const QuantizeGroupParams& params) {
  const ScopedFloatMode mode;
  return GROUPEDMIXER_PICK_VARIANT(symbol_kernels).quantize_group(params);
}

uint32_t scale_indexes(const ScaleIndexesParams& params) {
  const ScopedFloatMode mode;
  return GROUPEDMIXER_PICK_VARIANT(symbol_kernels).scale_indexes(params);
}

void dequantize_group(const DequantizeGroupParams& params) {
  const ScopedFloatMode mode;
  GROUPEDMIXER_PICK_VARIANT(symbol_kernels).dequantize_group(params);
}

}  // namespace groupedmixer::entropy
