// SPDX-License-Identifier: MIT
//
// Functions of all elements of an array on a GPU, with the bits of Kernels' functions of these
// names. A launcher enqueues on `stream`, a cudaStream_t; all pointers are device pointers. Throw
// std::runtime_error if the launch fails.

#pragma once

#include "strict/kernels.h"

namespace groupedmixer::strict {

void launch_compand(const MapParams& params, void* stream);
void launch_leaky_relu(const MapParams& params, void* stream);
void launch_half_tanh(const MapParams& params, void* stream);

}  // namespace groupedmixer::strict
