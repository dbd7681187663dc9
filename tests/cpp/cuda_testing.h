// SPDX-License-Identifier: MIT
//
// For tests of kernels that run on the host (cuda_host/cuda_runtime.h). What is passed to a kernel
// lies in `Device` memory, sized to the byte: AddressSanitizer sees accesses past its end.

#pragma once

#include <cstring>
#include <vector>

#include "common/cuda_launch.h"
#include "testing.h"

template <typename T>
class Device {
 public:
  // Bytes that no result has by chance.
  explicit Device(size_t count) : count_(count) {
    groupedmixer::check_cuda(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
    std::memset(static_cast<void*>(data_), 0xa5, count * sizeof(T));
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    if (count_ != 0) std::memcpy(data_, values.data(), count_ * sizeof(T));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }

  // To the bit.
  bool operator==(const std::vector<T>& expected) const {
    return count_ == expected.size() &&
           (count_ == 0 || std::memcmp(data_, expected.data(), count_ * sizeof(T)) == 0);
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};
