// SPDX-License-Identifier: MIT
//
// For .cu files: what launchers share. Knows the CUDA runtime, not torch. The runtime is linked
// statically and keeps its own error state, so launches are checked with it and not with torch's.
//
// Tests compile .cu files for the host too, without nvcc (tests/cpp/cuda_host/cuda_runtime.h). So
// kernels are launched by a function, and dynamic shared memory is declared by a macro.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

// In a kernel: Type* const name = the dynamic shared memory of its block, aligned to 128 bytes. The
// stand-in for CUDA has a definition of its own.
#ifndef GROUPEDMIXER_DYNAMIC_SHARED
#define GROUPEDMIXER_DYNAMIC_SHARED(Type, name)                                 \
  extern __shared__ __align__(128) unsigned char groupedmixer_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(groupedmixer_dynamic_shared)
#endif

namespace groupedmixer {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    message += " (groupedmixer was not built for this GPU: set TORCH_CUDA_ARCH_LIST)";
  }
  throw std::runtime_error(message);
}

// Blocks for a grid-stride loop over `count` elements, one a thread as long as that is sensible.
inline unsigned int grid_size(int64_t count, int block_size) {
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t blocks = (count + block_size - 1) / block_size;
  return static_cast<unsigned int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// A thread's part of that loop: for (i = first_element(); i < count; i += element_stride()).
inline __device__ int64_t first_element() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
inline __device__ int64_t element_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Lets a kernel have more dynamic shared memory than the usual 48 KiB. Always all that the device
// has, once: launches of other threads may need another size of the same kernel.
template <typename... Parameters>
void allow_dynamic_shared(const char* name, void (*kernel)(Parameters...), std::size_t bytes) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  if (bytes <= static_cast<std::size_t>(attributes.maxDynamicSharedSizeBytes)) return;
  int device = 0;
  int limit = 0;  // static and dynamic
  check_cuda(cudaGetDevice(&device), name);
  check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  limit -= static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
             name);
}

// Enqueues the kernel on `stream`, a cudaStream_t. Throws std::runtime_error, which begins with
// `name`, if that fails.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes,  // dynamic
            void* stream, Arguments&&... arguments) {
  if (shared_bytes > 0) allow_dynamic_shared(name, kernel, shared_bytes);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace groupedmixer
