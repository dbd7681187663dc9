// SPDX-License-Identifier: MIT

#include "runtime.h"

#include <malloc.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "injection.h"

namespace cuda_host {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{80} << 30;
constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;

std::mutex limits_mutex;
std::map<const void*, int> dynamic_shared_limits;  // of kernels for which one was set

std::atomic<std::size_t> failing_allocation{kNoLimit};
std::atomic<cudaError_t> failing_launch{cudaSuccess};
std::atomic<cudaError_t> missing_device{cudaSuccess};
std::atomic<bool> missing_code{false};
std::atomic<int64_t> kernel_count{0};
std::atomic<std::size_t> device_bytes_used{0};

int dynamic_shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto found = dynamic_shared_limits.find(kernel);
  const int usual = static_cast<int>(kDefaultSharedBytes);
  return found == dynamic_shared_limits.end() ? usual : found->second;
}

// In CUDA's words.
cudaError_t check_device() {
  const cudaError_t error = missing_device;
  if (error == cudaSuccess) return error;
  return fail(error, error == cudaErrorNoDevice
                         ? "no CUDA-capable device is detected"
                         : "CUDA driver version is insufficient for CUDA runtime version");
}

cudaError_t check_code() {
  if (!missing_code) return cudaSuccess;
  return fail(cudaErrorNoKernelImageForDevice,
              "no kernel image is available for execution on the device");
}

cudaError_t allocate(void** memory, std::size_t bytes, const char* call) {
  if (const cudaError_t error = check_device()) return error;
  if (const cudaError_t error = check_no_capture(call)) return error;
  std::size_t limit = failing_allocation;
  if (bytes > limit && failing_allocation.compare_exchange_strong(limit, kNoLimit)) {
    return fail(cudaErrorMemoryAllocation, "out of memory");
  }
  // Of that alignment on a GPU, to the byte in size, so that AddressSanitizer sees the end.
  constexpr std::size_t kAlignment = 256;
  if (posix_memalign(memory, kAlignment, bytes) == 0) return cudaSuccess;
  return fail(cudaErrorMemoryAllocation, "out of memory");
}

void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t row_bytes, std::size_t rows) {
  for (std::size_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * to_pitch,
                static_cast<const char*>(from) + row * from_pitch, row_bytes);
  }
}

cudaError_t run_kernel(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  ++kernel_count;
  const auto call = [](void* context) { (*static_cast<const std::function<void()>*>(context))(); };
  void* const context = const_cast<std::function<void()>*>(&thread);
  const std::string problem =
      run({config.gridDim, config.blockDim, config.dynamicSmemBytes, call, context});
  return problem.empty() ? cudaSuccess : fail(cudaErrorLaunchFailure, problem);
}

}  // namespace

cudaError_t fail(cudaError_t error, const std::string& message) {
  last_error = error;
  last_message = message;
  return error;
}

void fail_next_allocation_above(std::size_t bytes) { failing_allocation = bytes; }
void fail_next_launch(cudaError_t error) { failing_launch = error; }
void set_missing_device(cudaError_t error) { missing_device = error; }
void set_missing_code(bool missing) { missing_code = missing; }
int64_t kernels_run() { return kernel_count; }
std::size_t allocated_bytes() { return device_bytes_used; }

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> thread) {
  if (const cudaError_t error = failing_launch.exchange(cudaSuccess)) {
    return fail(error, "a test lets this launch fail");
  }
  if (const cudaError_t error = check_code()) return error;
  const int limit = dynamic_shared_limit(kernel);
  if (config.dynamicSmemBytes > static_cast<std::size_t>(limit)) {
    return fail(cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                           " bytes of dynamic shared memory, and " +
                                           std::to_string(limit) + " were asked for");
  }
  return enqueue(config.stream,
                 [config, thread = std::move(thread)] { return run_kernel(config, thread); });
}

}  // namespace cuda_host

using namespace cuda_host;

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
  if (const cudaError_t error = allocate(memory, bytes, "cudaMalloc")) return error;
  device_bytes_used += malloc_usable_size(*memory);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  if (const cudaError_t error = check_no_capture("cudaFree")) return error;
  device_bytes_used -= malloc_usable_size(memory);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  return allocate(memory, bytes, "cudaMallocHost");
}

cudaError_t cudaFreeHost(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  if (const cudaError_t error = check_no_capture("cudaFreeHost")) return error;
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  if (const cudaError_t error = check_device()) return error;
  *available = kDeviceBytes - device_bytes_used;
  *total = kDeviceBytes;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (const cudaError_t error = check_no_capture("cudaMemcpy")) return error;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t row_bytes, std::size_t rows,
                              cudaMemcpyKind, cudaStream_t stream) {
  if (row_bytes > to_pitch || row_bytes > from_pitch) {
    return fail(cudaErrorInvalidValue, "cudaMemcpy2DAsync: a row is longer than its pitch");
  }
  return enqueue(stream, [=] {
    copy_rows(to, to_pitch, from, from_pitch, row_bytes, rows);
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] {
    std::memset(memory, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (const cudaError_t error = check_device()) return error;
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = check_device()) return error;
  return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice, "invalid device ordinal");
}

cudaError_t cudaGetDevice(int* device) {
  if (const cudaError_t error = check_device()) return error;
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (const cudaError_t error = cudaSetDevice(device)) return error;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kMaxSharedBytes);
      return cudaSuccess;
  }
  return fail(cudaErrorInvalidValue, "an attribute of devices that is not covered");
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = missing_device == cudaErrorInsufficientDriver ? 0 : 13000;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (const cudaError_t error = check_code()) return error;
  *attributes = {0, dynamic_shared_limit(kernel)};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<std::size_t>(value) > kMaxSharedBytes) {
    return fail(cudaErrorInvalidValue, std::to_string(value) + " bytes of dynamic shared memory");
  }
  const std::lock_guard<std::mutex> lock(limits_mutex);
  dynamic_shared_limits[kernel] = value;
  return cudaSuccess;
}
