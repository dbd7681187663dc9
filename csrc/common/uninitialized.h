// SPDX-License-Identifier: MIT
//
// A vector whose new elements hold anything: for memory that is written before it is read, where
// filling it with zeros first would take as long as the work.

#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace groupedmixer {

template <typename T>
struct UninitializedAllocator : std::allocator<T> {
  template <typename Other>
  struct rebind {
    using other = UninitializedAllocator<Other>;
  };
  UninitializedAllocator() = default;
  template <typename Other>
  UninitializedAllocator(const UninitializedAllocator<Other>&) {}
  template <typename Other>
  void construct(Other* p) {
    ::new (static_cast<void*>(p)) Other;
  }
  template <typename Other, typename... Arguments>
  void construct(Other* p, Arguments&&... arguments) {
    ::new (static_cast<void*>(p)) Other(std::forward<Arguments>(arguments)...);
  }
};

template <typename T>
using UninitializedVector = std::vector<T, UninitializedAllocator<T>>;

}  // namespace groupedmixer
