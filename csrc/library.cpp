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
      "quantize_group(Tensor y, Tensor mean, Tensor raw_scale, Tensor thresholds, int skip_below,"
      " Tensor? dead_zone) -> (Tensor symbols, Tensor indexes, Tensor y_hat)");
  m.def("scale_indexes(Tensor raw_scale, Tensor mean, Tensor thresholds) -> Tensor indexes");
  m.def("dequantize_group(Tensor symbols, Tensor mean) -> Tensor y_hat");

  m.def("pack_weight(Tensor weight) -> Tensor packed");
  m.def(
      "linear(Tensor x, Tensor packed, Tensor bias, str activation, Tensor? residual,"
      " Tensor? norm_weight, Tensor? norm_bias) -> Tensor y");
  m.def(
      "linear_into(Tensor x, Tensor packed, Tensor bias, str activation, Tensor? residual,"
      " Tensor? norm_weight, Tensor? norm_bias, Tensor(a!) out) -> ()");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias) -> Tensor y");
  m.def("conv3x3(Tensor x, Tensor packed, Tensor bias, int stride, str activation) -> Tensor y");
  m.def("depthwise3x3(Tensor x, Tensor weight, Tensor bias) -> Tensor y");
  m.def("window_attention(Tensor qkv, Tensor relative_bias, bool shifted) -> Tensor out");
  m.def("append_attention(Tensor qkv, Tensor(a!) cache, Tensor step_bias, int step) -> Tensor out");
  m.def("compand(Tensor x) -> Tensor y");
  m.def("leaky_relu(Tensor x) -> Tensor y");
  m.def("add_half_tanh(Tensor y_hat, Tensor x) -> Tensor sum");
}
