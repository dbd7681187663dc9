// SPDX-License-Identifier: MIT
//
// The stand-in for CUDA (cuda_host/cuda_runtime.h): it runs right kernels right in both orders of
// threads, and notices wrong ones.

#include <sys/wait.h>
#include <unistd.h>

#include <cfenv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda_host/cuda_runtime.h"
#include "cuda_host/fiber.h"
#include "cuda_host/injection.h"
#include "cuda_host_kernels.h"
#include "testing.h"

namespace {

using cuda_host::Order;

void test_sum(Random& random) {
  for (const int count : {1, 255, 256, 257, 1000}) {
    const std::vector<float> values = noise(random, count, 1.0f);
    std::vector<float> sums(static_cast<size_t>((count + kSumThreads - 1) / kSumThreads));
    launch_sum(values.data(), sums.data(), count);
    for (size_t block = 0; block < sums.size(); ++block) {
      std::vector<float> partial(kSumThreads, 0.0f);
      for (size_t i = 0; i < partial.size() && block * kSumThreads + i < values.size(); ++i) {
        partial[i] = values[block * kSumThreads + i];
      }
      for (size_t half = kSumThreads / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) partial[i] += partial[i + half];
      }
      CHECK(sums[block] == partial[0]);
    }
  }
}

void test_scan(Random& random) {
  for (const int count : {1, 32, 100, 333}) {
    std::vector<int> values, expected;
    for (int i = 0; i < count; ++i) {
      values.push_back(uniform(random, -9, 9));
      expected.push_back(values.back() + (i % 32 == 0 ? 0 : expected.back()));
    }
    std::vector<int> sums(values.size());
    launch_scan(values.data(), sums.data(), count);
    CHECK(sums == expected);
  }
}

void test_transpose(Random& random) {
  for (const int rows : {1, 32, 45}) {
    for (const int columns : {1, 31, 70}) {
      const std::vector<float> in = noise(random, int64_t{rows} * columns, 1.0f);
      std::vector<float> out(in.size());
      launch_transpose(in.data(), out.data(), rows, columns);
      for (int i = 0; i < rows * columns; ++i) {
        CHECK(out[static_cast<size_t>(i % columns * rows + i / columns)] ==
              in[static_cast<size_t>(i)]);
      }
    }
  }
}

void test_gemm(Random& random) {
  struct Size {
    int m, n, k;
  };
  for (const Size& size : {Size{1, 1, 1}, Size{8, 8, 8}, Size{37, 50, 71}, Size{64, 33, 5}}) {
    const auto [m, n, k] = size;
    const std::vector<float> a = noise(random, int64_t{m} * k, 1.0f);
    const std::vector<float> b = noise(random, int64_t{k} * n, 1.0f);
    std::vector<float> expected(static_cast<size_t>(m * n), 0.0f);
    for (int row = 0; row < m; ++row) {
      for (int column = 0; column < n; ++column) {
        float& sum = expected[static_cast<size_t>(row * n + column)];
        for (int i = 0; i < k; ++i) {
          sum = std::fma(a[static_cast<size_t>(row * k + i)],
                         b[static_cast<size_t>(i * n + column)], sum);
        }
      }
    }
    for (const int tile : {8, 32}) {
      std::vector<float> c(expected.size());
      launch_gemm(a.data(), b.data(), c.data(), m, n, k, tile);
      CHECK(c == expected);
    }
  }
}

void test_lanes() {
  for (const int width : {4, 16, 32}) {
    std::vector<Lanes> lanes(kLaneThreads);
    launch_lanes(lanes.data(), width);
    for (int thread = 0; thread < kLaneThreads; ++thread) {
      const Lanes& own = lanes[static_cast<size_t>(thread)];
      const int first = thread / width * width;  // of the segment
      const int place = thread - first;
      if (thread < 32) {
        const int crossed = thread ^ 5;
        CHECK(own.wrapped == first + (place + 3) % width);
        CHECK(own.down == (place + 3 < width ? thread + 3 : thread));
        CHECK(own.crossed == (crossed < first + width ? crossed : thread));
      }
      CHECK(own.up == (place >= 3 ? thread - 3 : thread));
      CHECK(own.wide == first + 0.25);
      CHECK(own.ballot == (thread < 32 ? 0xaaaaaaaau : 0x000aaaaau));
      CHECK(own.any != 0);
      CHECK((own.all != 0) == (thread < 32));
    }
  }
  std::vector<int> sums(32);
  launch_halves(sums.data());
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(sums[static_cast<size_t>(lane)] == (lane % 2 == 0 ? 256 : 272));
  }
}

void test_count(Random& random) {
  std::vector<int> values;
  Counts expected = {{0, 0, 0, 0}, -1, 9, 0, 0, 0};
  Counts counts = expected;
  for (int i = 0; i < 150; ++i) {
    const int value = uniform(random, 0, 2);
    values.push_back(value);
    ++expected.by_value[value];
    expected.largest = std::max(expected.largest, value);
    expected.smallest = std::min(expected.smallest, value);
    expected.bits |= 1u << value;
    expected.parity ^= 1u << value;
    expected.chain += 3;
  }
  launch_count(values.data(), &counts, static_cast<int>(values.size()));
  CHECK(std::memcmp(&counts, &expected, sizeof(counts)) == 0);
}

void test_numbers() {
  std::vector<int> numbers(24 * 12);
  launch_number(numbers.data());
  for (size_t i = 0; i < numbers.size(); ++i) CHECK(numbers[i] == 1000 + static_cast<int>(i));
}

// A GPU rounds to nearest whatever the host's mode.
void test_float_mode() {
  float quotient = 0.0f;
  std::fesetround(FE_UPWARD);
  launch_divide(1.0f, 10.0f, &quotient);
  CHECK(std::fegetround() == FE_UPWARD);
  std::fesetround(FE_TONEAREST);
  CHECK(quotient == 0.1f);
}

// Expected values are CUDA's.
void test_functions() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 && __float2int_rn(kNan) == 0);
  CHECK(__float2int_rn(kInfinity) == 0x7fffffff && __float2int_rn(-0x1p31f) == -0x7fffffff - 1);
  CHECK(__float2int_rn(-kInfinity) == -0x7fffffff - 1 && __float2int_rn(0x1p31f) == 0x7fffffff);
  CHECK(__float2int_rz(-2.9f) == -2 && __float2int_rd(-2.1f) == -3);
  CHECK(__float2uint_rn(-1.0f) == 0 && __float2uint_rn(3.5f) == 4 && __float2uint_rz(3.9f) == 3);
  CHECK(__float2uint_rn(0x1p32f) == 0xffffffffu && __float2uint_rn(kNan) == 0);
  CHECK(__int2float_rn(0x01000003) == 0x1.000004p24f && __uint2float_rn(~0u) == 0x1p32f);
  CHECK(__float_as_uint(-1.0f) == 0xbf800000u && __uint_as_float(0x40000000u) == 2.0f);
  CHECK(__float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x3f800000) == 1.0f);
  CHECK(__fadd_rn(1.0f, 0x1p-24f) == 1.0f && __fsub_rn(1.0f, 0x1p-24f) == 0x1.fffffep-1f);
  CHECK(__fmul_rn(0x1.8p0f, 0x1.8p0f) == 2.25f &&
        __fmaf_rn(0x1.000002p0f, 0x1.000002p0f, -1.0f) == 0x1.000001p-22f);
  CHECK(__fdiv_rn(1.0f, 3.0f) == 0x1.555556p-2f && __frcp_rn(3.0f) == 0x1.555556p-2f);
  CHECK(__fsqrt_rn(2.0f) == 0x1.6a09e6p0f);
  CHECK(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
  CHECK(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
  CHECK(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(0) == 64 && __clzll(1) == 63);
  CHECK(__brev(1u) == 0x80000000u && __brev(0x00ff0000u) == 0x0000ff00u);
  CHECK(__mulhi(-2, 3) == -1 && __umulhi(0x80000000u, 6u) == 3);
  CHECK(__umul64hi(1ull << 63, 6) == 3);
  CHECK(__funnelshift_l(0x80000001u, 0x12345678u, 4) == 0x23456788u);
  CHECK(__funnelshift_r(0x80000001u, 0x12345678u, 4) == 0x88000000u);
  CHECK(min(-1, 2) == -1 && max(3u, 2u) == 3 && min(5l, 4l) == 4 && max(5ll, 4ll) == 5);
}

void test_memory() {
  int* device = nullptr;
  int back[3] = {};
  CHECK(cudaMalloc(&device, sizeof(back)) == cudaSuccess);
  CHECK(cudaMemsetAsync(device, 0xff, sizeof(back)) == cudaSuccess);
  CHECK(cudaMemcpyAsync(back, device, sizeof(back), cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess && cudaFree(device) == cudaSuccess);
  CHECK(back[0] == -1 && back[2] == -1);
}

void test_copies() {
  int* device = nullptr;
  int* host = nullptr;
  const std::size_t before = cuda_host::allocated_bytes();
  CHECK(cudaMalloc(&device, 12 * sizeof(int)) == cudaSuccess);
  CHECK(cudaMallocHost(&host, 12 * sizeof(int)) == cudaSuccess);
  CHECK(cuda_host::allocated_bytes() >= before + 12 * sizeof(int));
  size_t available = 0, total = 0;
  CHECK(cudaMemGetInfo(&available, &total) == cudaSuccess);
  CHECK(total == size_t{80} << 30 && total - available == cuda_host::allocated_bytes());
  for (int i = 0; i < 12; ++i) host[i] = i;
  CHECK(cudaMemcpy(device, host, 12 * sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
  int rows[3][2] = {};  // columns 1 and 2 of a matrix of 4 columns
  CHECK(cudaMemcpy2DAsync(rows, sizeof(rows[0]), device + 1, 4 * sizeof(int), sizeof(rows[0]), 3,
                          cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(rows[0][0] == 1 && rows[0][1] == 2 && rows[2][0] == 9 && rows[2][1] == 10);
  CHECK(cudaMemcpy2DAsync(rows, 4, device, 16, sizeof(rows[0]), 3, cudaMemcpyDeviceToHost) ==
        cudaErrorInvalidValue);
  CHECK(cudaFree(device) == cudaSuccess && cudaFreeHost(host) == cudaSuccess);
  CHECK(cudaFree(nullptr) == cudaSuccess && cuda_host::allocated_bytes() == before);
  cudaGetLastError();
}

void test_device() {
  int value = 0;
  CHECK(cudaGetDeviceCount(&value) == cudaSuccess && value == 1);
  CHECK(cudaSetDevice(0) == cudaSuccess && cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaGetDevice(&value) == cudaSuccess && value == 0);
  const auto attribute = [&](cudaDeviceAttr name) {
    CHECK(cudaDeviceGetAttribute(&value, name, 0) == cudaSuccess);
    return value;
  };
  CHECK(attribute(cudaDevAttrComputeCapabilityMajor) == 9);
  CHECK(attribute(cudaDevAttrComputeCapabilityMinor) == 0);
  CHECK(attribute(cudaDevAttrMultiProcessorCount) == 132);
  CHECK(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) == 227 << 10);
  cudaGetLastError();
}

// ---- streams and graphs -------------------------------------------------------------------------

class Stream {
 public:
  explicit Stream(unsigned int flags = cudaStreamNonBlocking) {
    CHECK(cudaStreamCreateWithFlags(&stream_, flags) == cudaSuccess);
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

  void begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) const {
    CHECK(cudaStreamBeginCapture(stream_, mode) == cudaSuccess);
  }
  cudaStreamCaptureStatus status() const {
    cudaStreamCaptureStatus status;
    CHECK(cudaStreamIsCapturing(stream_, &status) == cudaSuccess);
    return status;
  }
  // The capture was spoilt.
  void end_invalid() const {
    CHECK(status() == cudaStreamCaptureStatusInvalidated);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream_, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr && status() == cudaStreamCaptureStatusNone);
    cudaGetLastError();
  }

 private:
  cudaStream_t stream_ = nullptr;
};

class Graph {
 public:
  explicit Graph(const Stream& stream) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&executable_, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(executable_, stream); }

  size_t nodes = 0;

 private:
  cudaGraphExec_t executable_ = nullptr;
};

void test_graphs() {
  const Stream stream;
  int sum = 1, in = 5, copy = 0;
  stream.begin();
  CHECK(stream.status() == cudaStreamCaptureStatusActive);
  const int64_t before = cuda_host::kernels_run();
  CHECK(cudaMemcpyAsync(&sum, &in, sizeof(sum), cudaMemcpyDefault, stream) == cudaSuccess);
  for (int amount : {3, 4}) launch_scale_and_add(10, amount, &sum, stream);
  CHECK(cudaMemcpyAsync(&copy, &sum, sizeof(sum), cudaMemcpyDefault, stream) == cudaSuccess);
  CHECK(cudaMemsetAsync(&sum, 0, sizeof(sum), stream) == cudaSuccess);
  CHECK(sum == 1 && copy == 0 && cuda_host::kernels_run() == before);
  launch_scale_and_add(0, 7, &sum, nullptr);  // elsewhere: not captured
  CHECK(sum == 7 && cuda_host::kernels_run() == before + 1);
  const Graph graph(stream);
  CHECK(graph.nodes == 5 && stream.status() == cudaStreamCaptureStatusNone);
  CHECK(graph.launch(stream) == cudaSuccess);
  CHECK(sum == 0 && copy == 534 && cuda_host::kernels_run() == before + 3);
  in = 6;  // read when the graph runs
  CHECK(graph.launch(nullptr) == cudaSuccess && copy == 634);
}

void test_spoilt_captures() {
  const auto spoilt_by = [](const std::function<cudaError_t(const Stream&)>& call,
                            cudaError_t expected) {
    const Stream stream;
    stream.begin();
    CHECK(call(stream) == expected && cudaGetLastError() == expected);
    CHECK(cudaMemsetAsync(nullptr, 0, 0, stream) == cudaErrorStreamCaptureInvalidated);
    stream.end_invalid();
  };
  void* memory = nullptr;
  constexpr cudaError_t kUnsupported = cudaErrorStreamCaptureUnsupported;
  spoilt_by([&](const Stream&) { return cudaMalloc(&memory, 1); }, kUnsupported);
  spoilt_by([&](const Stream&) { return cudaMallocHost(&memory, 1); }, kUnsupported);
  CHECK(memory == nullptr);
  CHECK(cudaMalloc(&memory, 1) == cudaSuccess);
  spoilt_by([&](const Stream&) { return cudaFree(memory); }, kUnsupported);
  spoilt_by([&](const Stream&) { return cudaMemcpy(memory, memory, 1, cudaMemcpyDefault); },
            kUnsupported);
  spoilt_by([](const Stream& stream) { return cudaStreamSynchronize(stream); }, kUnsupported);
  cudaEvent_t event;
  CHECK(cudaEventCreate(&event) == cudaSuccess && cudaEventRecord(event) == cudaSuccess);
  spoilt_by([&](const Stream& stream) { return cudaStreamWaitEvent(stream, event); },
            cudaErrorStreamCaptureIsolation);
  cudaEventDestroy(event);

  // Other threads, and captures that ask for no care, are not concerned.
  const Stream stream;
  stream.begin();
  std::thread([&] {
    void* own = nullptr;
    CHECK(cudaMalloc(&own, 1) == cudaSuccess && cudaFree(own) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureWrongThread);
  }).join();
  CHECK(Graph(stream).nodes == 0);
  stream.begin(cudaStreamCaptureModeRelaxed);
  CHECK(cudaFree(memory) == cudaSuccess);
  CHECK(Graph(stream).nodes == 0);
}

void test_wrong_captures() {
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal) ==
        cudaErrorStreamCaptureUnsupported);
  const Stream stream, blocking(cudaStreamDefault);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
  stream.begin();
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaErrorIllegalState);
  CHECK(Graph(stream).nodes == 0);

  int sum = 1;
  blocking.begin();
  CHECK(cudaMemsetAsync(&sum, 0, sizeof(sum)) == cudaErrorStreamCaptureImplicit);
  CHECK(cudaStreamSynchronize(nullptr) == cudaErrorStreamCaptureImplicit && sum == 1);
  CHECK(Graph(blocking).nodes == 0);
  CHECK(cudaMemsetAsync(&sum, 0, sizeof(sum)) == cudaSuccess && sum == 0);

  // What goes wrong in a node is said by the launch.
  stream.begin();
  CHECK(cudaMemsetAsync(&sum, 0, sizeof(sum), stream) == cudaSuccess);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(0);
  config.stream = stream;
  CHECK(cudaLaunchKernelEx(&config, static_cast<void (*)()>([] {})) == cudaSuccess);
  CHECK(Graph(stream).launch(stream) == cudaErrorLaunchFailure);
  CHECK(std::string(cudaGetErrorString(cudaErrorLaunchFailure)) ==
        "node 1: a grid of 0 x 1 x 1 blocks, and it must have 1 to 2^31 - 1 (y, z: 65535)");
  cudaGetLastError();
}

void test_events() {
  const Stream stream;
  cudaEvent_t begin, end, mark;
  CHECK(cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  CHECK(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming) == cudaSuccess);
  float time = -1.0f;
  CHECK(cudaEventElapsedTime(&time, begin, end) == cudaErrorInvalidResourceHandle);
  stream.begin();
  CHECK(cudaEventRecordWithFlags(begin, stream, cudaEventRecordExternal) == cudaSuccess);
  CHECK(cudaEventRecordWithFlags(end, stream, cudaEventRecordExternal) == cudaSuccess);
  CHECK(cudaEventRecord(mark, stream) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(stream, mark) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(nullptr, mark) == cudaErrorNotSupported);
  CHECK(cudaEventSynchronize(mark) == cudaErrorCapturedEvent);
  const Graph graph(stream);
  CHECK(graph.nodes == 2);
  CHECK(cudaEventElapsedTime(&time, begin, end) == cudaErrorInvalidResourceHandle);
  CHECK(graph.launch(stream) == cudaSuccess && cudaEventSynchronize(end) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&time, begin, end) == cudaSuccess && time >= 0.0f);
  CHECK(cudaEventRecord(mark, stream) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(nullptr, mark) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&time, begin, mark) == cudaErrorInvalidResourceHandle);
  CHECK(cudaEventRecordWithFlags(end, stream, cudaEventRecordExternal) == cudaErrorInvalidValue);
  for (const cudaEvent_t event : {begin, end, mark}) CHECK(cudaEventDestroy(event) == cudaSuccess);
  cudaGetLastError();
}

void test_injections() {
  void* memory = nullptr;
  cuda_host::fail_next_allocation_above(100);
  CHECK(cudaMalloc(&memory, 100) == cudaSuccess && cudaFree(memory) == cudaSuccess);
  CHECK(cudaMalloc(&memory, 101) == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&memory, 101) == cudaSuccess && cudaFree(memory) == cudaSuccess);

  int sum = 1;
  const auto message = [&] {
    try {
      launch_scale_and_add(1, 1, &sum, nullptr);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  cuda_host::fail_next_launch(cudaErrorLaunchFailure);
  CHECK(message() == "scale_and_add_kernel: a test lets this launch fail");
  CHECK(cudaGetLastError() == cudaErrorLaunchFailure && sum == 1);
  cuda_host::set_missing_code(true);
  CHECK(message() ==
        "scale_and_add_kernel: no kernel image is available for execution on the device "
        "(groupedmixer was not built for this GPU: set TORCH_CUDA_ARCH_LIST)");
  CHECK(cudaGetLastError() == cudaErrorNoKernelImageForDevice && sum == 1);
  cuda_host::set_missing_code(false);
  launch_scale_and_add(1, 1, &sum, nullptr);
  CHECK(sum == 2);

  for (const cudaError_t missing : {cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    cuda_host::set_missing_device(missing);
    int count = 9;
    cudaStream_t stream = nullptr;
    CHECK(cudaGetDeviceCount(&count) == missing && count == 0 && cudaSetDevice(0) == missing);
    CHECK(cudaMalloc(&memory, 1) == missing);
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == missing);
  }
  cuda_host::set_missing_device(cudaSuccess);
  CHECK(cudaSetDevice(0) == cudaSuccess);
  cudaGetLastError();
}

void test_right_kernels() {
  Random random(1);
  test_sum(random);
  test_scan(random);
  test_transpose(random);
  test_gemm(random);
  test_lanes();
  test_count(random);
  test_numbers();
  test_float_mode();
}

// ---- what is noticed ----------------------------------------------------------------------------

void check_fails(const std::function<void()>& launch, const std::string& expected) {
  std::string message = "no failure";
  try {
    launch();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  if (message != expected) std::fprintf(stderr, "%s\n", message.c_str());
  CHECK(message == expected);
  CHECK(cudaGetLastError() != cudaSuccess && cudaGetLastError() == cudaSuccess);
  launch_block(1024, 1, 1);  // all is well again
}

void test_wrong_kernels(Order order) {
  const bool forward = order == Order::kForward;
  check_fails([] { launch_early_return(256, 3); },
              "early_return_kernel: __syncthreads is reached by 255 of 256 threads, but thread "
              "(3, 0, 0) of block (" +
                  std::string(forward ? "0" : "1") + ", 0, 0) has returned");
  check_fails([] { launch_barrier_in_a_branch(); },
              forward ? "barrier_in_a_branch_kernel: thread (16, 1, 0) of block (0, 0, 0) waits in "
                        "__syncwarp with mask 0x0000ffff, to which its lane 16 does not belong"
                      : "barrier_in_a_branch_kernel: thread (31, 1, 0) of block (0, 0, 0) waits in "
                        "__syncwarp with mask 0x0000ffff, to which its lane 31 does not belong");
  check_fails([] { launch_lane_missing(64, 37); },
              "lane_missing_kernel: thread (32, 0, 0) of block (0, 0, 0) waits in __shfl_xor_sync "
              "with mask 0xffffffff, but lane 5 of the mask has returned");
  check_fails([] { launch_lane_missing(16, -1); },
              "lane_missing_kernel: thread (0, 0, 0) of block (0, 0, 0) waits in __shfl_xor_sync "
              "with mask 0xffffffff, but lane 16 of the mask does not exist");
  check_fails([] { launch_lanes_elsewhere(); },
              forward ? "lanes_elsewhere_kernel: thread (31, 0, 0) of block (0, 0, 0) waits in "
                        "__any_sync with mask 0xffffffff, while of its lanes thread (0, 0, 0) of "
                        "block (0, 0, 0) waits in __ballot_sync with mask 0xffffffff"
                      : "lanes_elsewhere_kernel: thread (0, 0, 0) of block (0, 0, 0) waits in "
                        "__ballot_sync with mask 0xffffffff, while of its lanes thread (16, 0, 0) "
                        "of block (0, 0, 0) waits in __any_sync with mask 0xffffffff");
  check_fails([] { launch_masks_that_differ(); },
              forward ? "masks_that_differ_kernel: thread (31, 0, 0) of block (0, 0, 0) waits in "
                        "__syncwarp with mask 0xffffffff, while of its lanes thread (4, 0, 0) of "
                        "block (0, 0, 0) waits in __syncwarp with mask 0x0000ffff"
                      : "masks_that_differ_kernel: thread (0, 0, 0) of block (0, 0, 0) waits in "
                        "__syncwarp with mask 0xffffffff, while of its lanes thread (4, 0, 0) of "
                        "block (0, 0, 0) waits in __syncwarp with mask 0x0000ffff");
  check_fails([] { launch_foreign_lane(); },
              "foreign_lane_kernel: thread (" + std::string(forward ? "0" : "15") +
                  ", 0, 0) of block (0, 0, 0) waits in __shfl_sync with mask 0x0000ffff for the "
                  "value of lane 20, which does not belong to it");
  check_fails([] { launch_foreign_mask(); },
              "foreign_mask_kernel: thread (" + std::string(forward ? "16" : "31") +
                  ", 0, 0) of block (0, 0, 0) waits in __syncwarp with mask 0x0000ffff, to which "
                  "its lane " +
                  (forward ? "16" : "31") + " does not belong");
}

void test_limits() {
  launch_shared(128);
  launch_shared(187 << 10);
  check_fails(
      [] { launch_shared((187 << 10) + 1); },
      "shared_kernel: 232449 bytes of shared memory, static and dynamic, and at most 232448 "
      "are there");
  check_fails([] { launch_shared((227 << 10) + 1); },
              "shared_kernel: 232449 bytes of dynamic shared memory, and 232448 were asked for");
  launch_block(4, 4, 64);
  check_fails([] { launch_block(1025, 1, 1); },
              "empty_kernel: a block of 1025 x 1 x 1 threads, and it must have 1 to 1024 (z: 64)");
  check_fails([] { launch_block(32, 33, 1); },
              "empty_kernel: a block of 32 x 33 x 1 threads, and it must have 1 to 1024 (z: 64)");
  check_fails([] { launch_block(1, 1, 65); },
              "empty_kernel: a block of 1 x 1 x 65 threads, and it must have 1 to 1024 (z: 64)");
  check_fails([] { launch_grid(0, 1, 1); },
              "empty_kernel: a grid of 0 x 1 x 1 blocks, and it must have 1 to 2^31 - 1 (y, z: "
              "65535)");
  check_fails([] { launch_grid(1, 65536, 1); },
              "empty_kernel: a grid of 1 x 65536 x 1 blocks, and it must have 1 to 2^31 - 1 (y, z: "
              "65535)");
}

void test_race() {
  std::vector<int> results[2] = {std::vector<int>(64), std::vector<int>(64)};
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    launch_race(results[static_cast<size_t>(order)].data());
  }
  CHECK(results[0] != results[1]);
}

void test_unwritten() {
  float values[2] = {0.0f, 0.0f};
  launch_unwritten(&values[0], &values[1]);
  CHECK(std::isnan(values[0]) && std::isnan(values[1]));
}

// The pool of fibers changes hands.
void test_launches_of_other_threads() {
  for (int i = 0; i < 2; ++i) {
    std::thread([] {
      Random random(2);
      test_sum(random);
    }).join();
    Random random(3);
    test_scan(random);
  }
}

// Of programs built with -fsanitize=address,undefined.
#if defined(CUDA_HOST_ASAN)

void check_dies(const std::function<void()>& action, const std::string& expected) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    action();
    _exit(0);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0;) {
    output.append(buffer, static_cast<size_t>(got));
  }
  close(ends[0]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  const bool found = output.find(expected) != std::string::npos;
  if (status == 0 || !found) std::fprintf(stderr, "%s\n", output.c_str());
  CHECK(status != 0 && found);
}

void test_sanitizers() {
  launch_static_overrun(63);
  check_dies([] { launch_static_overrun(64); }, "insufficient space");
  launch_dynamic_overrun(63);
  check_dies([] { launch_dynamic_overrun(64); }, "heap-buffer-overflow");
  int* values = nullptr;
  CHECK(cudaMalloc(&values, 7 * sizeof(int)) == cudaSuccess);
  launch_global_overrun(values, 6);
  check_dies([&] { launch_global_overrun(values, 7); }, "heap-buffer-overflow");
  cudaFree(values);
  alignas(16) const float floats[8] = {};
  float sum = 1.0f;
  launch_misaligned(floats + 4, &sum);
  CHECK(sum == 0.0f);
  check_dies([&] { launch_misaligned(floats + 2, &sum); }, "misaligned address");
}

#else
void test_sanitizers() {}
#endif

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    test_right_kernels();
    test_wrong_kernels(order);
    test_limits();
    test_unwritten();
  }
  test_race();
  test_functions();
  test_memory();
  test_copies();
  test_device();
  test_graphs();
  test_spoilt_captures();
  test_wrong_captures();
  test_events();
  test_injections();
  test_launches_of_other_threads();
  test_sanitizers();
  std::puts("passed");
}
