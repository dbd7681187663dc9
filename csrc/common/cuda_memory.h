// SPDX-License-Identifier: MIT
//
// Device memory for adapters, which include no CUDA headers. `stream` is a cudaStream_t.

#pragma once

#include <cstdint>

namespace groupedmixer {

// Enqueues *device = 0.
void clear_device_word(uint32_t* device, void* stream);

// Waits for the stream and returns *device.
uint32_t read_device_word(const uint32_t* device, void* stream);

}  // namespace groupedmixer
