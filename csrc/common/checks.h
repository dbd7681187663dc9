// SPDX-License-Identifier: MIT
//
// Checks of operator arguments. Each error names the argument, the rule and the value; in Python it
// is a RuntimeError.

#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/torch_stable.h"

// The message's parts are only evaluated on failure. Unlike STD_TORCH_CHECK, it says nothing about
// the source file: the error is the caller's.
#define GROUPEDMIXER_CHECK(condition, ...)                                           \
  do {                                                                               \
    if (!(condition)) throw std::runtime_error(::groupedmixer::joined(__VA_ARGS__)); \
  } while (false)

namespace groupedmixer {

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

inline std::string device_of(const Tensor& tensor) {
  const torch::stable::Device device = tensor.device();
  if (device.is_cpu()) return "cpu";
  return (device.is_cuda() ? "cuda:" : "device ") + std::to_string(device.index());
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    default:
      return "another dtype";
  }
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  GROUPEDMIXER_CHECK(tensor.scalar_type() == dtype, name, " must be ", name_of(dtype), ", got ",
                     name_of(tensor.scalar_type()));
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  GROUPEDMIXER_CHECK(tensor.is_contiguous(), name, " must be contiguous, got shape ",
                     shape_of(tensor), " with other strides; call .contiguous()");
}

inline void check_same_shape(const Tensor& tensor, const char* name, const Tensor& like,
                             const char* like_name) {
  bool same = tensor.dim() == like.dim();
  for (int64_t d = 0; same && d < like.dim(); ++d) same = tensor.size(d) == like.size(d);
  GROUPEDMIXER_CHECK(same, name, " must have the shape of ", like_name, ", ", shape_of(like),
                     ", got ", shape_of(tensor));
}

inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& like,
                              const char* like_name) {
  GROUPEDMIXER_CHECK(tensor.device() == like.device(), name, " must be on the device of ",
                     like_name, ", ", device_of(like), ", got ", device_of(tensor));
}

}  // namespace groupedmixer
