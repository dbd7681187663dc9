// SPDX-License-Identifier: MIT
//
// All of torch that adapters may use: its stable ABI, so that one build runs on every torch
// since 2.10.
//
// Traps: in a schema, `int` is int64_t and `float` is double here (float compiles and reads
// garbage). In-place operators neither bump a tensor's version nor refuse leaves that require grad.

#pragma once

// Some releases of the headers are not clean under -Wextra.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#pragma GCC diagnostic pop

namespace groupedmixer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Uninitialised, contiguous, on the device of `like` and of its shape.
inline Tensor empty_like_as(const Tensor& like, ScalarType dtype) {
  return torch::stable::new_empty(like, like.sizes(), dtype);
}

}  // namespace groupedmixer
