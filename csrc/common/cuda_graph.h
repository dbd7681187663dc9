// SPDX-License-Identifier: MIT
//
// Work on a stream that is recorded once and replayed. For .cu files and headers that only they
// include.

#pragma once

#include <cstddef>
#include <utility>

#include "common/cuda_launch.h"

namespace groupedmixer {

// A stream of one's own, of the current device.
class CudaStream {
 public:
  CudaStream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaGraph {
 public:
  CudaGraph() = default;
  CudaGraph(CudaGraph&& other) noexcept
      : exec_(std::exchange(other.exec_, nullptr)), nodes_(other.nodes_) {}
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    std::swap(exec_, other.exec_);
    std::swap(nodes_, other.nodes_);
    return *this;
  }
  ~CudaGraph() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  }

  explicit operator bool() const { return exec_ != nullptr; }
  std::size_t nodes() const { return nodes_; }

  // Records what `enqueue` enqueues on `stream`, which must not be the null stream. All kernels
  // must have run once before: loading one while a stream records may fail. Gives no graph if
  // another thread has spoilt it, as cudaDeviceSynchronize does.
  template <typename Enqueue>
  static CudaGraph record(cudaStream_t stream, const Enqueue& enqueue) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      if (ended == cudaErrorStreamCaptureInvalidated) return {};
      throw;
    }
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (ended == cudaErrorStreamCaptureInvalidated) {
      cudaGetLastError();  // it is dealt with
      return {};
    }
    check_cuda(ended, "capture");
    CudaGraph recorded;
    cudaError_t error = cudaGraphGetNodes(graph, nullptr, &recorded.nodes_);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&recorded.exec_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(error, "cudaGraphInstantiate");
    return recorded;
  }

  void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(exec_, stream), "graph"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
  std::size_t nodes_ = 0;
};

// Points in time on a stream, also inside of a graph.
class CudaEvent {
 public:
  CudaEvent() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~CudaEvent() { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(cudaStream_t stream) const {
    cudaStreamCaptureStatus status;
    check_cuda(cudaStreamIsCapturing(stream, &status), "cudaEventRecord");
    // Inside of a graph, an event is a mere edge unless it says that others look at it.
    const unsigned flags =
        status == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    check_cuda(cudaEventRecordWithFlags(event_, stream, flags), "cudaEventRecord");
  }

  // Both must have happened.
  double seconds_since(const CudaEvent& earlier) const {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace groupedmixer
