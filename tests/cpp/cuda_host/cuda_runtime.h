// SPDX-License-Identifier: MIT
//
// Stands in for CUDA's header of this name, so that a C++ compiler makes of a .cu file code that
// runs without a GPU, and that sanitizers look into:
//
//   g++ -x c++ -Itests/cpp/cuda_host -Icsrc -ffp-contract=off -fno-strict-aliasing ... file.cu
//
// with all sources of this folder in the program. Kernels are plain CUDA, except that
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
// What is enqueued is done at once, but for what a graph captures: that is done when the graph is
// launched. Calls that invalidate a capture on a GPU do so here.
//
// All shared memory is not-a-number before each block. AddressSanitizer finds accesses past the end
// of shared and global memory, UndefinedBehaviorSanitizer misaligned ones. Missing barriers show in
// results that differ between the orders of device.h.
//
// Not covered: races that neither order shows, registers and spills, limits below an H100's, time;
// host memory that is used again, or read, before the stream is done with it; captures of more than
// one stream.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
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
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalState = 401,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorCapturedEvent = 907,
  cudaErrorStreamCaptureWrongThread = 908,
};

// In more words than CUDA's, for the latest error of its kind.
const char* cudaGetErrorString(cudaError_t error);

// ... and forgets it.
cudaError_t cudaGetLastError();

// ---- memory: the host's -------------------------------------------------------------------------

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
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
template <typename T>
cudaError_t cudaMallocHost(T** memory, std::size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(memory), bytes);
}
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t row_bytes, std::size_t rows,
                              cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes,
                            cudaStream_t stream = nullptr);

// ---- streams, and what they capture -------------------------------------------------------------

enum : unsigned int { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,  // not covered
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2,
};

using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaGraphNode_t = struct CUgraphNode_st*;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);

// Tells how many nodes there are; `nodes` must be null.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);

using cudaEvent_t = struct CUevent_st*;

enum : unsigned int {
  cudaEventDefault = 0,
  cudaEventBlockingSync = 1,
  cudaEventDisableTiming = 2,
};
enum : unsigned int { cudaEventRecordDefault = 0, cudaEventRecordExternal = 1 };
enum : unsigned int { cudaEventWaitDefault = 0, cudaEventWaitExternal = 1 };

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream = nullptr,
                                     unsigned int flags = cudaEventRecordDefault);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned int flags = cudaEventWaitDefault);

// ---- devices and kernels ------------------------------------------------------------------------

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

// There is one device, unless a test says otherwise (injection.h).
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDriverGetVersion(int* version);  // 0: there is no driver
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
// An H100's.
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
                          std::function<void()> thread);

}  // namespace cuda_host

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> own{std::forward<Arguments>(arguments)...};
  return cuda_host::launch_kernel(*config, reinterpret_cast<const void*>(kernel), [kernel, own] {
    std::apply(kernel, own);
  });  // copies them: every thread has its own
}
