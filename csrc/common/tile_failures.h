// SPDX-License-Identifier: MIT
//
// What became of a tile on a GPU, in a word that kernels lower with atomicMin: so the first failure
// of all remains, whoever finds it when. Within a step, what is to be coded comes first, as an
// infinite latent makes the next predictions infinite too.

#pragma once

#include <cstdint>

namespace groupedmixer {

constexpr uint32_t kNoTileFailure = ~uint32_t{0};

// y is not finite in the group of this step.
constexpr uint32_t latent_failure(int64_t step) { return static_cast<uint32_t>(2 * step); }

// Mean or raw scale are not.
constexpr uint32_t prediction_failure(int64_t step) { return static_cast<uint32_t>(2 * step + 1); }

constexpr bool failed_at_y(uint32_t failure) { return failure % 2 == 0; }
constexpr int64_t failed_step(uint32_t failure) { return failure / 2; }

}  // namespace groupedmixer
