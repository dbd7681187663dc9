// SPDX-License-Identifier: MIT
//
// What CUDA adapters need of torch beyond its stable headers. The library links no libtorch_cuda,
// so that it loads under a torch without CUDA too: there the weak symbol is null, and as such a
// torch has no CUDA tensors, nothing gets to call it.

#pragma once

#include "common/checks.h"

extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace groupedmixer {

// The stream that PyTorch would use now, for a launcher's `stream`; never the null stream by
// default.
inline void* current_cuda_stream(const Tensor& tensor) {
  GROUPEDMIXER_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

}  // namespace groupedmixer
