// SPDX-License-Identifier: MIT
//
// What the *_isa.cpp files of this folder define, gathered into one Kernels by kernels_isa.cpp.

#pragma once

#include "strict/kernels.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

void linear(const LinearParams& params);
void norm(const NormParams& params);
void window_attention(const WindowAttentionParams& params);
void append_attention(const AppendAttentionParams& params);
void depthwise3x3(const DepthwiseParams& params);
void compand_all(const MapParams& params);
void leaky_relu_all(const MapParams& params);
void half_tanh_all(const MapParams& params);

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
