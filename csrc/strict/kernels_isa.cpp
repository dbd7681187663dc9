// SPDX-License-Identifier: MIT

#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

extern const Kernels strict_kernels;
const Kernels strict_kernels = {
    &linear,       &norm,        &window_attention, &append_attention,
    &depthwise3x3, &compand_all, &leaky_relu_all,   &half_tanh_all,
};

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
