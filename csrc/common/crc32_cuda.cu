// SPDX-License-Identifier: MIT
//
// A CRC is linear: apart from its start and its end, it is the sum (by XOR) over the message's
// words of word * x^(32 n) modulo the polynomial, where n - 1 words follow. So threads may take the
// words in any order, as long as each sum is multiplied by the power of x that its place asks for.
//
// Polynomials are bit-reversed, as in the usual CRC-32: bit 31 is the coefficient of x^0.

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "common/crc32_cuda.h"
#include "common/cuda_launch.h"

namespace groupedmixer {
namespace {

constexpr uint32_t kPolynomial = 0xedb88320u;
constexpr uint32_t kOne = 0x80000000u;
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 8;
constexpr int kBlockWords =
    kRows * kThreads;  // of a block: the words of a thread are kThreads apart
constexpr uint32_t kAllLanes = ~0u;

__host__ __device__ constexpr uint32_t times_x(uint32_t a) {
  return a >> 1 ^ (kPolynomial & (0u - (a & 1u)));
}

__host__ __device__ constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    product ^= b & (0u - (a >> bit & 1u));
    b = times_x(b);
  }
  return product;
}

// x^(32 * 2^i), which put a word 2^i words ahead.
struct Shifts {
  uint32_t by[32];
};

constexpr Shifts make_shifts() {
  Shifts shifts{};
  uint32_t power = kOne >> 1;
  for (int i = 0; i < 5; ++i) power = multiply(power, power);
  for (uint32_t& shift : shifts.by) {
    shift = power;
    power = multiply(power, power);
  }
  return shifts;
}
constexpr Shifts kShifts = make_shifts();

constexpr int log2_of(int power) {
  int bits = 0;
  while (1 << bits < power) ++bits;
  return bits;
}

// Puts the polynomial so many words ahead.
__device__ uint32_t shift_words(uint32_t polynomial, uint32_t words, const Shifts& shifts) {
  for (int i = 0; words != 0; ++i, words >>= 1) {
    if ((words & 1) != 0) polynomial = multiply(polynomial, shifts.by[i]);
  }
  return polynomial;
}

// A block takes kBlockWords of a tile's message, counted from its end: so that the first of its
// blocks, which may be short, begins with words that are zero and change nothing.
__global__ void __launch_bounds__(kThreads)
    tile_checksums_kernel(TileChecksumParams p, Shifts shifts) {
  __shared__ uint32_t ahead[4][256];  // kThreads words, of each byte of a polynomial
  __shared__ uint32_t sums[kWarps];
  const TileSpan& tile = p.set.tiles[blockIdx.y];
  const auto group_words = static_cast<uint32_t>(tile.tokens() * p.channels);
  const uint32_t words = group_words * static_cast<uint32_t>(p.groups);
  const uint32_t behind_block = blockIdx.x * kBlockWords;
  if (behind_block >= words) return;
  const auto thread = static_cast<int>(threadIdx.x);
  const float* y_hat = p.y_hat + static_cast<int64_t>(tile.first) * p.channels;
  const int64_t group_stride = static_cast<int64_t>(p.set.tokens) * p.channels;

  uint32_t word[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const uint32_t behind = behind_block + (kRows - 1 - row) * kThreads + (kThreads - 1 - thread);
    word[row] = 0;
    if (behind < words) {
      const uint32_t at = words - 1 - behind;
      const float value = y_hat[at / group_words * group_stride + at % group_words];
      word[row] = __float_as_uint(__fadd_rn(value, 0.0f));  // no -0
    }
  }
  static_assert(kThreads == 256, "a thread an entry");
#pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    ahead[byte][thread] =
        multiply(static_cast<uint32_t>(thread) << (8 * byte), shifts.by[log2_of(kThreads)]);
  }
  __syncthreads();
  uint32_t sum = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    sum = ahead[0][sum & 0xff] ^ ahead[1][sum >> 8 & 0xff] ^ ahead[2][sum >> 16 & 0xff] ^
          ahead[3][sum >> 24] ^ word[row];
  }
  // Of neighbours, the one with the lower place is further ahead.
#pragma unroll
  for (int i = 0; i < log2_of(kWarp); ++i) {
    const uint32_t next = __shfl_down_sync(kAllLanes, sum, 1u << i);
    sum = multiply(sum, shifts.by[i]) ^ next;
  }
  if (thread % kWarp == 0) sums[thread / kWarp] = sum;
  __syncthreads();
  if (thread >= kWarp) return;
  sum = thread < kWarps ? sums[thread] : 0;
#pragma unroll
  for (int i = 0; i < log2_of(kWarps); ++i) {
    const uint32_t next = __shfl_down_sync(kAllLanes, sum, 1u << i);
    sum = multiply(sum, shifts.by[log2_of(kWarp) + i]) ^ next;
  }
  if (thread == 0) atomicXor(&p.checksums[blockIdx.y], shift_words(sum, behind_block + 1, shifts));
  // The start is all ones ahead of the message; so is what the end inverts.
  if (thread == 1 && blockIdx.x == 0) {
    atomicXor(&p.checksums[blockIdx.y], ~shift_words(~0u, words, shifts));
  }
}

}  // namespace

void launch_tile_checksums(const TileChecksumParams& p, void* stream) {
  if (p.set.count == 0) return;
  constexpr int64_t kMostWords = int64_t{1} << 31;
  int64_t most = 0;
  for (int i = 0; i < p.set.count; ++i) {
    most = std::max(most, int64_t{p.set.tiles[i].tokens()} * p.channels * p.groups);
  }
  if (most >= kMostWords) {
    throw std::invalid_argument("tiles must have less than 2^31 elements, got " +
                                std::to_string(most));
  }
  check_cuda(cudaMemsetAsync(p.checksums, 0, static_cast<size_t>(p.set.count) * sizeof(uint32_t),
                             static_cast<cudaStream_t>(stream)),
             "launch_tile_checksums");
  const auto blocks = static_cast<unsigned int>((most + kBlockWords - 1) / kBlockWords);
  launch("tile_checksums_kernel", tile_checksums_kernel,
         dim3(blocks, static_cast<unsigned int>(p.set.count)), kThreads, 0, stream, p, kShifts);
}

}  // namespace groupedmixer
