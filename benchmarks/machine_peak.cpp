// SPDX-License-Identifier: MIT
//
// What this machine can do at most, as JSON: multiply-adds and read bandwidth.
//
//     c++ -O3 -march=native -std=gnu++17 -pthread machine_peak.cpp -o machine_peak
//     ./machine_peak THREADS [BUFFER_MIB]
//
// Every thread repeats its part for a fixed time between two barriers, so that no thread is
// measured while others have stopped; the best of several rounds counts, as a peak should.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef unsigned long long Words __attribute__((vector_size(kVectorBytes)));

// Latency 4 x 2 units needs 8 sums in flight; 12 leave slack and fit 16 registers with 2 operands.
constexpr int kSums = 12;
constexpr int kRounds = 16;
constexpr double kSecondsPerRound = 0.08;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Keeps a value, and so the work that made it, from being optimised away.
template <typename T>
void keep(T& value) {
  asm volatile("" : "+m"(value)::"memory");
}

// Multiply-adds of one call: kSums * kLanes * steps. Contracted to FMA by -O3 -march=native, since
// GNU C++ (not -std=c++17) allows that within an expression.
__attribute__((noinline)) void multiply_add(long steps, Vector* state) {
  Vector sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = state[i];
  const Vector a = state[kSums], b = state[kSums + 1];
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
  }
  for (int i = 0; i < kSums; ++i) state[i] = sums[i];
}

// Reads every byte once; several sums, so that loads and not additions are waited for.
__attribute__((noinline)) unsigned long long read_all(const char* data, size_t bytes) {
  constexpr int kStreams = 8;
  Words sums[kStreams] = {};
  for (size_t at = 0; at < bytes; at += kStreams * kVectorBytes) {
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) {
      sums[i] ^= *reinterpret_cast<const Words*>(data + at + i * kVectorBytes);
    }
  }
  unsigned long long folded = 0;
  for (const Words& sum : sums) {
    for (size_t lane = 0; lane < kVectorBytes / sizeof(folded); ++lane) folded ^= sum[lane];
  }
  return folded;
}

// Best rate over the rounds, in units per second, of `work(thread)`, which returns units done.
double best_rate(int threads, const std::function<double(int)>& work) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false}, stop{false};
    std::vector<double> rates(threads);
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
      running.emplace_back([&, t] {
        ready.fetch_add(1);
        while (!go.load()) std::this_thread::yield();
        const auto start = Clock::now();
        double units = 0;
        do {
          units += work(t);
        } while (!stop.load());
        rates[t] = units / seconds_since(start);
      });
    }
    while (ready.load() < threads) std::this_thread::yield();
    go.store(true);
    std::this_thread::sleep_for(std::chrono::duration<double>(kSecondsPerRound));
    stop.store(true);
    for (std::thread& thread : running) thread.join();
    double sum = 0;
    for (double rate : rates) sum += rate;
    best = std::max(best, sum);
  }
  return best;
}

double fma_gflops(int threads) {
  constexpr long kSteps = 20000;
  return 1e-9 * best_rate(threads, [](int) {
           alignas(kVectorBytes) Vector state[kSums + 2];
           // Sums stay near b / (1 - a) = 1: no denormals, no infinities.
           for (Vector& v : state) v = Vector{} + 1.0f;
           state[kSums] = Vector{} + 0.5f;
           state[kSums + 1] = Vector{} + 0.5f;
           keep(state);
           multiply_add(kSteps, state);
           keep(state);
           return 2.0 * kSums * kLanes * kSteps;
         });
}

double read_gbytes(int threads, const char* data, size_t bytes) {
  const size_t block = 8 * kVectorBytes;
  const size_t part = bytes / threads / block * block;
  // A round is many pieces, so that a thread notices the end soon; pieces go through the whole
  // part before any is read again.
  const size_t piece = std::max(part / 64 / block * block, block);
  std::vector<size_t> at(threads, 0);
  return 1e-9 * best_rate(threads, [&](int t) {
           if (at[t] + piece > part) at[t] = 0;
           auto folded = read_all(data + t * part + at[t], piece);
           keep(folded);
           at[t] += piece;
           return static_cast<double>(piece);
         });
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const size_t mib = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1024;
  if (threads < 1 || mib < 1) {
    std::fprintf(stderr, "usage: machine_peak THREADS [BUFFER_MIB], both at least 1\n");
    return 2;
  }
  const size_t bytes = mib << 20;
  std::unique_ptr<char, decltype(&std::free)> data(
      static_cast<char*>(std::aligned_alloc(kVectorBytes, bytes)), &std::free);
  if (!data) {
    std::fprintf(stderr, "no memory for a buffer of %zu MiB\n", mib);
    return 1;
  }
  std::memset(data.get(), 1, bytes);  // pages exist before they are read
  std::printf(
      "{\"vector_bits\": %d, \"threads\": %d, \"buffer_mib\": %zu, \"fma_gflops_1\": %.1f, "
      "\"fma_gflops\": %.1f, \"read_gbs_1\": %.2f, \"read_gbs\": %.2f}\n",
      8 * kVectorBytes, threads, mib, fma_gflops(1), fma_gflops(threads),
      read_gbytes(1, data.get(), bytes), read_gbytes(threads, data.get(), bytes));
  return 0;
}
