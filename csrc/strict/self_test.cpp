// SPDX-License-Identifier: MIT

#include "strict/self_test.h"

#include <vector>

#include "common/aligned.h"
#include "common/crc32.h"
#include "common/float_mode.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"

namespace groupedmixer::strict {
namespace {

// Numbers around 1 with full significands, so that every rounding counts.
class Numbers {
 public:
  AlignedVector next(int64_t count) {
    AlignedVector values(static_cast<size_t>(count));
    for (float& value : values) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const auto bits = static_cast<int32_t>(state_ >> 39) - (1 << 24);  // 25 bits, signed
      value = static_cast<float>(bits) * 0x1p-24f;
    }
    return values;
  }

 private:
  uint64_t state_ = 1;
};

uint32_t add(uint32_t crc, const AlignedVector& values) {
  return crc32(crc, values.data(), values.size() * sizeof(float));
}

uint32_t test_linear(const Kernels& kernels, Numbers& numbers) {
  // More columns than a wide tile has, and some of another panel.
  constexpr int64_t kRows = 15, kDepth = 160, kWidth = 72;
  const AlignedVector x = numbers.next(kRows * kDepth), weight = numbers.next(kWidth * kDepth);
  const AlignedVector bias = numbers.next(kWidth), residual = numbers.next(kRows * kWidth);
  const AlignedVector norm_weight = numbers.next(kDepth), norm_bias = numbers.next(kDepth);
  const PackedLinear packed = pack_linear(weight.data(), bias.data(), kWidth, kDepth);
  uint32_t crc = 0;
  for (const Activation activation :
       {Activation::kNone, Activation::kGelu, Activation::kLeakyRelu}) {
    AlignedVector out(kRows * kWidth), normed(kRows * kDepth);
    LinearParams p{
        x.data(), kDepth, packed.weight.data(), packed.bias.data(), out.data(), kWidth, kRows,
        kDepth,   kWidth};
    p.activation = activation;
    p.residual = residual.data();
    p.residual_stride = kWidth;
    if (activation == Activation::kGelu) {
      p.norm_weight = norm_weight.data();
      p.norm_bias = norm_bias.data();
      p.normed = normed.data();
    }
    kernels.linear(p);
    crc = add(add(crc, out), normed);
  }
  return crc;
}

uint32_t test_attention(const Kernels& kernels, Numbers& numbers) {
  constexpr int64_t kHeads = 2, kWidth = kHeads * kHeadDim, kRows = 5, kColumns = 7;
  constexpr int64_t kTokens = kRows * kColumns, kBias = (2 * kWindow - 1) * (2 * kWindow - 1);
  const AlignedVector qkv = numbers.next(kTokens * 3 * kWidth), bias = numbers.next(kHeads * kBias);
  AlignedVector out(kTokens * kWidth), scratch(kWindowScratch);
  for (int64_t head = 0; head < kHeads; ++head) {
    kernels.window_attention({qkv.data(), kColumns, kHeads, head, 0, 0, kRows, kColumns, 0, kTokens,
                              bias.data(), out.data(), scratch.data()});
  }
  uint32_t crc = add(0, out);

  constexpr int64_t kSteps = 11, kBlock = 13;
  const KvCache layout{kHeads, kSteps};
  std::vector<uint16_t> cache(static_cast<size_t>(layout.size(kBlock)));
  const AlignedVector step_bias = numbers.next(kHeads * kSteps * kSteps);
  AlignedVector append(static_cast<size_t>(append_scratch(kSteps)));
  for (int64_t step = 0; step < kSteps; ++step) {
    AlignedVector attended(kBlock * kWidth);
    kernels.append_attention({qkv.data() + step * 3 * kWidth, 3 * kWidth, cache.data(),
                              step_bias.data(), attended.data(), kWidth, kBlock, kHeads, step,
                              kSteps, append.data()});
    crc = add(crc, attended);
  }
  return crc;
}

// Most roundings inside of exp are lost in the sums around it. They show where gelu divides by a
// large exponential, in a few of many numbers.
uint32_t test_gelu(const Kernels& kernels, Numbers& numbers) {
  constexpr int64_t kRows = 128, kWidth = 256;
  AlignedVector x = numbers.next(kRows), weight = numbers.next(kWidth), out(kRows * kWidth);
  for (float& value : x) value = -4.0f - value * value;
  for (float& value : weight) value = 1.0f + value * value;
  const AlignedVector bias(kWidth);
  const PackedLinear packed = pack_linear(weight.data(), bias.data(), kWidth, 1);
  LinearParams p{
      x.data(), 1, packed.weight.data(), packed.bias.data(), out.data(), kWidth, kRows, 1, kWidth};
  p.activation = Activation::kGelu;
  kernels.linear(p);
  return add(0, out);
}

uint32_t test_elements(const Kernels& kernels, Numbers& numbers) {
  constexpr int64_t kHeight = 3, kWidth = 4, kChannels = 19;
  const AlignedVector x = numbers.next(kHeight * kWidth * kChannels);
  const AlignedVector weight = numbers.next(9 * kChannels), bias = numbers.next(kChannels);
  AlignedVector out(x.size());
  kernels.depthwise3x3(
      {x.data(), weight.data(), bias.data(), out.data(), kHeight, kWidth, kChannels, 0, kHeight});
  uint32_t crc = add(0, out);
  AlignedVector many = numbers.next(1024);
  for (size_t i = 0; i < many.size(); ++i) many[i] *= static_cast<float>(1 << i % 6);
  const auto count = static_cast<int64_t>(many.size());
  AlignedVector values = many;
  kernels.half_tanh({many.data(), values.data(), count});
  crc = add(crc, values);
  kernels.compand({many.data(), values.data(), count});
  crc = add(crc, values);
  kernels.leaky_relu({many.data(), values.data(), count});
  crc = add(crc, values);
  constexpr int64_t kRow = 64;
  kernels.norm({many.data(), kRow, many.data() + kRow, many.data() + 2 * kRow, values.data(), kRow,
                count / kRow, kRow});
  return add(crc, values);
}

}  // namespace

uint32_t self_test(const Kernels& kernels) {
  const ScopedFloatMode mode;
  Numbers numbers;
  uint32_t hashes[] = {test_linear(kernels, numbers), test_attention(kernels, numbers),
                       test_gelu(kernels, numbers), test_elements(kernels, numbers)};
  return crc32(0, hashes, sizeof(hashes));
}

}  // namespace groupedmixer::strict
