// SPDX-License-Identifier: MIT

#include "common/cuda_launch.h"
#include "common/cuda_memory.h"

namespace groupedmixer {

void clear_device_word(uint32_t* device, void* stream) {
  check_cuda(cudaMemsetAsync(device, 0, sizeof(*device), static_cast<cudaStream_t>(stream)),
             "clear_device_word");
}

uint32_t read_device_word(const uint32_t* device, void* stream) {
  uint32_t word = 0;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemcpyAsync(&word, device, sizeof(word), cudaMemcpyDeviceToHost, cuda_stream),
             "read_device_word");
  check_cuda(cudaStreamSynchronize(cuda_stream), "read_device_word");
  return word;
}

}  // namespace groupedmixer
