// SPDX-License-Identifier: MIT
//
// Vectors of floats that start at a cache line.

#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace groupedmixer {

constexpr std::size_t kAlignment = 64;

template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kAlignment}));
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t{kAlignment}); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

using AlignedVector = std::vector<float, AlignedAllocator<float>>;

}  // namespace groupedmixer
