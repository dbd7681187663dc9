// SPDX-License-Identifier: MIT
//
// Streams, captures, graphs and events. A capture is a list of operations in the order in which
// they were enqueued.

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "injection.h"
#include "runtime.h"

using cuda_host::fail;
using Operation = std::function<cudaError_t()>;
using Clock = std::chrono::steady_clock;

struct CUstream_st {
  bool blocking;  // waits for the null stream and makes it wait
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
  std::thread::id capturer;
  std::vector<Operation> captured;
};

struct CUgraph_st {
  std::vector<Operation> nodes;
};

struct CUgraphExec_st {
  std::vector<Operation> nodes;
};

struct CUevent_st {
  bool timed;
  enum { kNever, kRecorded, kCaptured } state = kNever;
  cudaStream_t capturer = nullptr;  // of kCaptured
  Clock::time_point time;
};

namespace {

// Of the thread, in a mode that restricts it.
thread_local std::vector<cudaStream_t> restricting_captures;

std::atomic<int> blocking_captures{0};  // of streams that the null stream would have to wait for
std::atomic<bool> spoiling_capture{false};

bool capturing(cudaStream_t stream) {
  return stream != nullptr && stream->status != cudaStreamCaptureStatusNone;
}

cudaError_t invalidate(cudaStream_t stream, cudaError_t error, const std::string& message) {
  stream->status = cudaStreamCaptureStatusInvalidated;
  return fail(error, message);
}

void stop_capturing(cudaStream_t stream) {
  if (stream->blocking) --blocking_captures;
  for (std::size_t i = 0; i < restricting_captures.size(); ++i) {
    if (restricting_captures[i] == stream) {
      restricting_captures.erase(restricting_captures.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
  }
  stream->status = cudaStreamCaptureStatusNone;
  stream->captured.clear();
}

cudaError_t check_null_stream(cudaStream_t stream) {
  if (stream != nullptr || blocking_captures == 0) return cudaSuccess;
  return fail(cudaErrorStreamCaptureImplicit,
              "operation would make the legacy stream depend on a capturing blocking stream");
}

}  // namespace

void cuda_host::spoil_next_capture() { spoiling_capture = true; }

cudaError_t cuda_host::check_no_capture(const char* call) {
  if (restricting_captures.empty()) return cudaSuccess;
  for (const cudaStream_t stream : restricting_captures) {
    stream->status = cudaStreamCaptureStatusInvalidated;
  }
  return fail(cudaErrorStreamCaptureUnsupported,
              std::string(call) + ": operation not permitted when stream is capturing");
}

cudaError_t cuda_host::enqueue(cudaStream_t stream, Operation operation) {
  if (const cudaError_t error = check_null_stream(stream)) return error;
  if (!capturing(stream)) return operation();
  if (stream->status == cudaStreamCaptureStatusInvalidated) {
    return fail(cudaErrorStreamCaptureInvalidated,
                "operation failed due to a previous error during capture");
  }
  stream->captured.push_back(std::move(operation));
  return cudaSuccess;
}

// ---- streams ------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count)) return error;
  *stream = new CUstream_st{};
  (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr) return fail(cudaErrorInvalidResourceHandle, "no stream to destroy");
  if (capturing(stream)) stop_capturing(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = check_null_stream(stream)) return error;
  if (!capturing(stream)) return cudaSuccess;
  return invalidate(stream, cudaErrorStreamCaptureUnsupported,
                    "cudaStreamSynchronize: operation not permitted when stream is capturing");
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) {
    return fail(cudaErrorStreamCaptureUnsupported, "the null stream cannot capture");
  }
  if (capturing(stream)) return fail(cudaErrorIllegalState, "the stream captures already");
  if (mode == cudaStreamCaptureModeGlobal) {
    return fail(cudaErrorNotSupported, "cudaStreamCaptureModeGlobal is not covered");
  }
  stream->status = cudaStreamCaptureStatusActive;
  stream->mode = mode;
  stream->capturer = std::this_thread::get_id();
  if (stream->blocking) ++blocking_captures;
  if (mode == cudaStreamCaptureModeThreadLocal) restricting_captures.push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!capturing(stream)) return fail(cudaErrorIllegalState, "the stream captures nothing");
  const bool relaxed = stream->mode == cudaStreamCaptureModeRelaxed;
  if (!relaxed && stream->capturer != std::this_thread::get_id()) {
    return fail(cudaErrorStreamCaptureWrongThread, "another thread began the capture");
  }
  const bool spoilt = spoiling_capture.exchange(false);
  const bool valid = stream->status == cudaStreamCaptureStatusActive && !spoilt;
  if (valid) *graph = new CUgraph_st{std::move(stream->captured)};
  stop_capturing(stream);
  if (valid) return cudaSuccess;
  return fail(cudaErrorStreamCaptureInvalidated,
              "operation failed due to a previous error during capture");
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (const cudaError_t error = check_null_stream(stream)) return error;
  *status = stream == nullptr ? cudaStreamCaptureStatusNone : stream->status;
  return cudaSuccess;
}

// ---- graphs -------------------------------------------------------------------------------------

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes != nullptr) return fail(cudaErrorNotSupported, "nodes of graphs are not covered");
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (const cudaError_t error = check_null_stream(stream)) return error;
  if (capturing(stream)) {
    return invalidate(stream, cudaErrorNotSupported, "graphs within graphs are not covered");
  }
  for (std::size_t i = 0; i < executable->nodes.size(); ++i) {
    if (const cudaError_t error = executable->nodes[i]()) {
      const std::string problem = cudaGetErrorString(error);
      return fail(error, "node " + std::to_string(i) + ": " + problem);
    }
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

// ---- events -------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  *event = new CUevent_st{};
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
  const bool external = (flags & cudaEventRecordExternal) != 0;
  if (external && !capturing(stream)) {
    return fail(cudaErrorInvalidValue, "cudaEventRecordExternal outside of a capture");
  }
  if (capturing(stream) && !external) {  // a mark among the nodes, not a node
    if (stream->status == cudaStreamCaptureStatusInvalidated) {
      return fail(cudaErrorStreamCaptureInvalidated,
                  "operation failed due to a previous error during capture");
    }
    event->state = CUevent_st::kCaptured;
    event->capturer = stream;
    return cudaSuccess;
  }
  return cuda_host::enqueue(stream, [event] {
    event->state = CUevent_st::kRecorded;
    event->time = Clock::now();
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->state != CUevent_st::kCaptured) return cudaSuccess;
  return fail(cudaErrorCapturedEvent, "cudaEventSynchronize: the event was recorded by a capture");
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  for (const cudaEvent_t event : {begin, end}) {
    if (event->state == CUevent_st::kCaptured) {
      return fail(cudaErrorCapturedEvent,
                  "cudaEventElapsedTime: an event was recorded by a capture");
    }
    if (event->state == CUevent_st::kNever || !event->timed) {
      return fail(cudaErrorInvalidResourceHandle,
                  "cudaEventElapsedTime: an event was not recorded, or has no time");
    }
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
  const bool external = (flags & cudaEventWaitExternal) != 0;
  if (event->state == CUevent_st::kCaptured && !external) {
    if (event->capturer == stream) return cudaSuccess;
    return fail(cudaErrorNotSupported, "captures of more than one stream are not covered");
  }
  if (!capturing(stream)) return cudaSuccess;  // it has happened
  if (!external) {
    return invalidate(stream, cudaErrorStreamCaptureIsolation,
                      "dependency created on uncaptured work in another stream");
  }
  return cuda_host::enqueue(stream, [] { return cudaSuccess; });
}
