// SPDX-License-Identifier: MIT

#include <stdexcept>
#include <string>

#include "common/cuda_launch.h"
#include "common/device.h"

namespace groupedmixer {
namespace {

// Never launched: that CUDA finds it says that this build has code for the device.
__global__ void probe_kernel() {}

void require_device(int device) {
  int count = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    std::string problem = error == cudaSuccess ? "CUDA finds none" : cudaGetErrorString(error);
    cudaDriverGetVersion(&driver);
    if (driver == 0) problem = "no NVIDIA driver is installed";
    cudaGetLastError();  // it is dealt with here
    throw std::runtime_error("no GPU can be used: " + problem);
  }
  if (device < 0 || device >= count) {
    throw std::invalid_argument("device must be 0 .. " + std::to_string(count - 1) + ", got " +
                                std::to_string(device));
  }
}

void require_code(int device) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess) return;
  cudaGetLastError();
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
  const std::string capability = std::to_string(major) + "." + std::to_string(minor);
  throw std::runtime_error("this build of groupedmixer has no code for GPU " +
                           std::to_string(device) + ", whose compute capability is " + capability +
                           "; build it with TORCH_CUDA_ARCH_LIST=" + capability);
}

}  // namespace

DeviceScope::DeviceScope(int device) {
  require_device(device);
  check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
  device_ = device;
  // Not if it is so: setting a device makes a context on it.
  if (before_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  try {
    require_code(device);
  } catch (...) {
    restore();
    throw;
  }
}

DeviceScope::~DeviceScope() { restore(); }

void DeviceScope::restore() const {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace groupedmixer
