// SPDX-License-Identifier: MIT
//
// The schema of every operator. Implementations are registered beside their adapters (*_op.cpp),
// fakes for torch.compile in groupedmixer_ext/ops.py.

#include "common/torch_stable.h"

STABLE_TORCH_LIBRARY(groupedmixer, m) {
  m.def("isa_names() -> str");
  m.def("active_isa() -> int");
  m.def("isa_available(int isa) -> bool");

  m.def(
      "quantize_group(Tensor y, Tensor mean, Tensor raw_scale, Tensor thresholds, int skip_below)"
      " -> (Tensor symbols, Tensor indexes, Tensor y_hat)");
  m.def("scale_indexes(Tensor raw_scale, Tensor mean, Tensor thresholds) -> Tensor indexes");
  m.def("dequantize_group(Tensor symbols, Tensor mean) -> Tensor y_hat");
}
