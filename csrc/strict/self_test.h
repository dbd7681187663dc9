// SPDX-License-Identifier: MIT
//
// Every kernel on a few small inputs, in a millisecond. The hash of what they give was taken once
// and is part of the arithmetic id: variants, compilers and processors must all reproduce it.

#pragma once

#include <cstdint>

#include "strict/kernels.h"

namespace groupedmixer::strict {

constexpr uint32_t kSelfTestHash = 0x6152f5ebu;

uint32_t self_test(const Kernels& kernels);

}  // namespace groupedmixer::strict
