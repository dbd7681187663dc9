// SPDX-License-Identifier: MIT
//
// What tests of hosts' code let happen on the stand-in, and what they may ask it.

#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime.h"

namespace cuda_host {

// The next cudaMalloc or cudaMallocHost of more than this fails with cudaErrorMemoryAllocation.
void fail_next_allocation_above(std::size_t bytes);

// The next launch of a kernel, captured or not, fails with `error`.
void fail_next_launch(cudaError_t error);

// The next capture turns out to be spoilt when it ends, as by another thread.
void spoil_next_capture();

// What is said for want of a device, cudaErrorNoDevice or cudaErrorInsufficientDriver (no driver
// at all), until it is there again (cudaSuccess).
void set_missing_device(cudaError_t error);

// Whether the device is one that nothing was compiled for.
void set_missing_code(bool missing);

// Kernels that have run so far, those of graphs included.
int64_t kernels_run();

// What cudaMalloc has given and cudaFree has not taken back.
std::size_t allocated_bytes();

}  // namespace cuda_host
