// SPDX-License-Identifier: MIT

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "cuda_runtime.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;

std::mutex limits_mutex;
std::map<const void*, int> dynamic_shared_limits;  // of kernels for which one was set

int dynamic_shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto found = dynamic_shared_limits.find(kernel);
  const int usual = static_cast<int>(cuda_host::kDefaultSharedBytes);
  return found == dynamic_shared_limits.end() ? usual : found->second;
}

cudaError_t fail(cudaError_t error, const std::string& message) {
  last_error = error;
  last_message = message;
  return error;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == last_error ? last_message.c_str() : "an earlier error";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  // Of that alignment on a GPU, to the byte in size, so that AddressSanitizer sees the end.
  constexpr std::size_t kAlignment = 256;
  if (posix_memalign(memory, kAlignment, bytes) == 0) return cudaSuccess;
  return fail(cudaErrorMemoryAllocation, "out of memory");
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(cuda_host::kMaxSharedBytes);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {0, dynamic_shared_limit(kernel)};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<std::size_t>(value) > cuda_host::kMaxSharedBytes) {
    return fail(cudaErrorInvalidValue, std::to_string(value) + " bytes of dynamic shared memory");
  }
  const std::lock_guard<std::mutex> lock(limits_mutex);
  dynamic_shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t cuda_host::launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                                     void (*thread)(void* context), void* context) {
  const int limit = dynamic_shared_limit(kernel);
  if (config.dynamicSmemBytes > static_cast<std::size_t>(limit)) {
    return fail(cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                           " bytes of dynamic shared memory, and " +
                                           std::to_string(limit) + " were asked for");
  }
  const std::string problem =
      run({config.gridDim, config.blockDim, config.dynamicSmemBytes, thread, context});
  return problem.empty() ? cudaSuccess : fail(cudaErrorLaunchFailure, problem);
}
