// SPDX-License-Identifier: MIT
//
// Stands in for CUDA's header of this name, so that a C++ compiler makes of a .cu file code that
// runs without a GPU, and that sanitizers look into:
//
//   g++ -x c++ -Itests/cpp/cuda_host -Icsrc -ffp-contract=off -fno-strict-aliasing ... file.cu
//
// with fiber.cpp, device.cpp, runtime.cpp and shared_variables.cpp in the program. Kernels are
// plain CUDA, except that
//
//   - they are launched by groupedmixer::launch, as no C++ compiler parses <<<>>>,
//   - dynamic shared memory is declared by GROUPEDMIXER_DYNAMIC_SHARED (common/cuda_launch.h),
//   - they hold no PTX, and call what is declared here and nothing else of CUDA. A header that
//   wraps
//     PTX needs a twin in this folder, at the same path: it comes first on the include path.
//
// A launch fails with a sentence (cudaGetErrorString) where a GPU would hang or do what it likes:
//
//   - a barrier that some threads of the block do not reach
//   - a shuffle, ballot or __syncwarp that some lanes of its mask do not reach, or reach with
//     another mask, or that reads a lane outside of its mask
//   - more shared memory or larger blocks than there are
//
// All shared memory is not-a-number before each block. AddressSanitizer finds accesses past the end
// of shared and global memory, UndefinedBehaviorSanitizer misaligned ones. Missing barriers show in
// results that differ between the orders of device.h.
//
// Not covered: races that neither order shows, registers and spills, limits below an H100's, time.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <tuple>
#include <utility>

#include "device.h"
#include "device_functions.h"
#include "shared_variables.h"  // __shared__

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define GROUPEDMIXER_DYNAMIC_SHARED(Type, name) \
  Type* const name = reinterpret_cast<Type*>(cuda_host::dynamic_shared())

// ---- errors -------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
};

// In more words than CUDA's, for the latest error of its kind.
const char* cudaGetErrorString(cudaError_t error);

// ... and forgets it.
cudaError_t cudaGetLastError();

// ---- memory: the host's; streams: everything happens at once ------------------------------------

using cudaStream_t = struct CUstream_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};

cudaError_t cudaMalloc(void** memory, std::size_t bytes);
template <typename T>
cudaError_t cudaMalloc(T** memory, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes,
                            cudaStream_t stream = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

// ---- devices and kernels ------------------------------------------------------------------------

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;  // 0: known only once the kernel has run
  int maxDynamicSharedSizeBytes;
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
};

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  struct cudaLaunchAttribute* attrs;
  unsigned int numAttrs;
};

namespace cuda_host {

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                          void (*thread)(void* context), void* context);

}  // namespace cuda_host

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Context {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } context = {kernel, {std::forward<Arguments>(arguments)...}};
  const auto thread = [](void* pointer) {
    const Context& own = *static_cast<Context*>(pointer);
    std::apply(own.kernel, own.arguments);  // copies them, as every thread has its own
  };
  return cuda_host::launch_kernel(*config, reinterpret_cast<const void*>(kernel), thread, &context);
}
