// SPDX-License-Identifier: MIT
//
// Memory on a GPU for the engine: arrays that live as long as their owner, and a layout of scratch
// at fixed addresses. For .cu files and headers that only they include.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "common/cuda_launch.h"

namespace groupedmixer {

// A GPU has less memory left than is needed.
class DeviceMemoryError : public std::bad_alloc {
 public:
  explicit DeviceMemoryError(std::size_t bytes)
      : message_("out of memory on the GPU: could not allocate " + std::to_string(bytes) +
                 " bytes") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Memory of the current device, not initialised.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Throws DeviceMemoryError.
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    const cudaError_t error = cudaMalloc(&data_, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it is dealt with here, the next launch need not hear of it
      throw DeviceMemoryError(bytes);
    }
    check_cuda(error, "cudaMalloc");
  }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) cudaFree(data_);
  }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t size() const { return bytes_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// A copy of a host array. `Vector` is a std::vector of trivially copyable elements.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(const T* values, std::size_t count) : memory_(count * sizeof(T)) {
    if (count == 0) return;
    check_cuda(cudaMemcpy(memory_.data(), values, count * sizeof(T), cudaMemcpyHostToDevice),
               "DeviceArray");
    // The copy may be under way yet, and streams that do not block do not wait for it.
    check_cuda(cudaStreamSynchronize(nullptr), "DeviceArray");
  }
  template <typename Vector>
  explicit DeviceArray(const Vector& values) : DeviceArray(values.data(), values.size()) {}

  const T* data() const { return reinterpret_cast<const T*>(memory_.data()); }

 private:
  DeviceMemory memory_;
};

// Hands out parts of a piece of memory. Run on a null base, it measures: so the same code says how
// much memory it needs and then uses it.
class DeviceLayout {
 public:
  explicit DeviceLayout(std::byte* base = nullptr) : base_(base) {}

  // Aligned for every kind of access.
  template <typename T>
  T* take(int64_t count) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t at = used_;
    used_ +=
        (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (used_ > peak_) peak_ = used_;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }

  // Gives back what was taken since the mark: for what is needed for one stage only. On a GPU,
  // stages follow each other on a stream.
  std::size_t mark() const { return used_; }
  void release(std::size_t mark) { used_ = mark; }

  std::size_t peak() const { return peak_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
};

}  // namespace groupedmixer
