// SPDX-License-Identifier: MIT
//
// What the Python modules of coders share. Types and shapes are worded in Python; what is checked
// here is what memory safety needs.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace groupedmixer::entropy {

// Bound with noconvert(): an array of another type or layout is a TypeError, never a silent copy.
template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

// Marks an object as in use while the GIL is released, where a second thread could reach it.
class Lease {
 public:
  explicit Lease(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) throw std::runtime_error("the object is in use by another thread");
  }
  ~Lease() { busy_ = false; }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  std::atomic<bool>& busy_;
};

inline void require_same_size(pybind11::ssize_t a, pybind11::ssize_t b, const char* names) {
  if (a != b) {
    throw std::invalid_argument(std::string(names) + " must have equal sizes, got " +
                                std::to_string(a) + " and " + std::to_string(b));
  }
}

inline std::vector<pybind11::ssize_t> shape_of(const pybind11::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

}  // namespace groupedmixer::entropy
