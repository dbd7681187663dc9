// SPDX-License-Identifier: MIT
//
// Loops plain enough for the compiler to vectorise: over blocks of a constant size, of which the
// last is padded with zeros. Every element goes through the same IEEE operations at any vector
// width, so the variants agree to the bit.

#include <cstddef>
#include <cstring>

#include "entropy/symbols_kernels.h"

namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT {
namespace {

// Small enough for the counts of a block to stay in registers.
constexpr int64_t kBlock = 32;

// Adding and subtracting 1.5 * 2^23 rounds half to even for |x| <= 2^22, without a call to libm.
constexpr float kRounder = 12582912.0f;

// For every index there may be.
constexpr float kNoDeadZone[kMaxThresholds + 1] = {};

constexpr float kMinSymbol = -32768.0f;
constexpr float kMaxSymbol = 32767.0f;

// All ones where x is infinite or not a number, else 0.
inline uint32_t non_finite_mask(float x) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return (bits & kExponent) == kExponent ? ~0u : 0u;
}

// Not a number becomes kMinSymbol, so that the conversion is defined; callers report it.
inline int16_t round_symbol(float x) {
  x = x > kMinSymbol ? x : kMinSymbol;
  x = x < kMaxSymbol ? x : kMaxSymbol;
  return static_cast<int16_t>(static_cast<int32_t>((x + kRounder) - kRounder));
}

struct Block {
  float values[kBlock];
};

inline Block load_block(const float* values,  // [size]
                        int64_t size) {
  Block block = {};
  std::memcpy(block.values, values, static_cast<std::size_t>(size) * sizeof(float));
  return block;
}

// All ones if any value is not finite, else 0.
inline uint32_t non_finite_mask(const Block& block) {
  uint32_t mask = 0;
  for (int64_t i = 0; i < kBlock; ++i) mask |= non_finite_mask(block.values[i]);
  return mask;
}

// Counts the thresholds below each value.
inline void count_thresholds(const Block& raw_scale,
                             const float* thresholds,  // [num_thresholds]
                             int64_t num_thresholds,
                             uint8_t* indexes) {  // [kBlock]
  int32_t below[kBlock] = {};
  for (int64_t t = 0; t < num_thresholds; ++t) {
    const float threshold = thresholds[t];
    for (int64_t i = 0; i < kBlock; ++i) below[i] += threshold < raw_scale.values[i] ? 1 : 0;
  }
  for (int64_t i = 0; i < kBlock; ++i) indexes[i] = static_cast<uint8_t>(below[i]);
}

inline int64_t block_size(int64_t begin, int64_t count) {
  return count - begin < kBlock ? count - begin : kBlock;
}

uint32_t quantize_group(const QuantizeGroupParams& params) {
  const QuantizeGroupParams p = params;
  const int32_t skip_below = static_cast<int32_t>(p.skip_below);
  const float* dead_zone = p.dead_zone != nullptr ? p.dead_zone : kNoDeadZone;
  uint32_t bad = 0;
  for (int64_t begin = 0; begin < p.count; begin += kBlock) {
    const int64_t size = block_size(begin, p.count);
    const Block y = load_block(p.y + begin, size);
    const Block mean = load_block(p.mean + begin, size);
    const Block raw_scale = load_block(p.raw_scale + begin, size);
    uint8_t indexes[kBlock];
    count_thresholds(raw_scale, p.thresholds, p.num_thresholds, indexes);
    int16_t symbols[kBlock];
    Block y_hat;
    for (int64_t i = 0; i < kBlock; ++i) {
      const float residual = y.values[i] - mean.values[i];
      const float magnitude = residual < 0.0f ? -residual : residual;
      const bool zero = indexes[i] < skip_below || magnitude < dead_zone[indexes[i]];
      symbols[i] = zero ? static_cast<int16_t>(0) : round_symbol(residual);
      y_hat.values[i] = static_cast<float>(symbols[i]) + mean.values[i];
    }
    std::memcpy(p.indexes + begin, indexes, static_cast<std::size_t>(size) * sizeof(uint8_t));
    std::memcpy(p.symbols + begin, symbols, static_cast<std::size_t>(size) * sizeof(int16_t));
    std::memcpy(p.y_hat + begin, y_hat.values, static_cast<std::size_t>(size) * sizeof(float));
    bad |= (non_finite_mask(y) & kNonFiniteY) | (non_finite_mask(mean) & kNonFiniteMean) |
           (non_finite_mask(raw_scale) & kNonFiniteRawScale);
  }
  return bad;
}

uint32_t scale_indexes(const ScaleIndexesParams& params) {
  const ScaleIndexesParams p = params;
  uint32_t bad = 0;
  for (int64_t begin = 0; begin < p.count; begin += kBlock) {
    const int64_t size = block_size(begin, p.count);
    const Block raw_scale = load_block(p.raw_scale + begin, size);
    uint8_t indexes[kBlock];
    count_thresholds(raw_scale, p.thresholds, p.num_thresholds, indexes);
    std::memcpy(p.indexes + begin, indexes, static_cast<std::size_t>(size) * sizeof(uint8_t));
    bad |= (non_finite_mask(load_block(p.mean + begin, size)) & kNonFiniteMean) |
           (non_finite_mask(raw_scale) & kNonFiniteRawScale);
  }
  return bad;
}

void dequantize_group(const DequantizeGroupParams& params) {
  const DequantizeGroupParams p = params;
  for (int64_t i = 0; i < p.count; ++i) p.y_hat[i] = static_cast<float>(p.symbols[i]) + p.mean[i];
}

}  // namespace

extern const SymbolKernels symbol_kernels;
const SymbolKernels symbol_kernels = {&quantize_group, &scale_indexes, &dequantize_group};

}  // namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT
