// SPDX-License-Identifier: MIT
//
// What the sources of the stand-in's runtime share.

#pragma once

#include <functional>
#include <string>

#include "cuda_runtime.h"

namespace cuda_host {

// Remembers it for cudaGetLastError and cudaGetErrorString, and returns `error`.
cudaError_t fail(cudaError_t error, const std::string& message);

// Fails, and invalidates what the calling thread captures, if it captures anything: of calls that
// a capture does not allow, such as cudaMalloc.
cudaError_t check_no_capture(const char* call);

// Does it now, or appends it to what the stream captures.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> operation);

}  // namespace cuda_host
