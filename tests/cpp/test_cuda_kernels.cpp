// SPDX-License-Identifier: MIT
//
// Every CUDA kernel of the project, executed on the host (cuda_host/cuda_runtime.h), gives the bits
// of its CPU function, whatever the order of threads. One function a family of kernels.

#include <algorithm>
#include <cstring>
#include <limits>

#include "common/cuda_memory.h"
#include "common/float_mode.h"
#include "entropy/rans.h"
#include "entropy/rans_cuda.h"
#include "entropy/stream_error.h"
#include "entropy/symbols.h"
#include "strict/cuda.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"
#include "cuda_testing.h"

namespace {

namespace entropy = groupedmixer::entropy;
using cuda_host::Order;

// ---- entropy/symbols_cuda.cu --------------------------------------------------------------------

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Symbols {
  std::vector<float> y, mean, raw_scale;  // [count]
  std::vector<float> thresholds;          // [num_thresholds], ascending
};

// Some of the scales are thresholds, some of the differences halves or far out of range.
Symbols random_symbols(Random& random, int count, int num_thresholds) {
  Symbols symbols = {noise(random, count, 20.0f), noise(random, count, 3.0f),
                     noise(random, count, 2.0f), noise(random, num_thresholds, 2.0f)};
  std::sort(symbols.thresholds.begin(), symbols.thresholds.end());
  for (size_t i = 0; i < symbols.y.size(); ++i) {
    const int kind = uniform(random, 0, 9);
    if (kind == 0) symbols.y[i] = symbols.mean[i] = 0.0f;
    if (kind == 1) symbols.mean[i] = symbols.y[i] + static_cast<float>(uniform(random, -5, 5));
    if (kind == 2) {
      symbols.y[i] = static_cast<float>(uniform(random, -70000, 70000)) / 2;
      symbols.mean[i] = 0.0f;
    }
    if (kind == 3 && num_thresholds > 0) {
      const int t = uniform(random, 0, num_thresholds - 1);
      symbols.raw_scale[i] = symbols.thresholds[static_cast<size_t>(t)];
    }
  }
  return symbols;
}

void check_quantize_group(const Symbols& in, int64_t skip_below, uint32_t expected_bits) {
  const size_t count = in.y.size();
  const int64_t num_thresholds = static_cast<int64_t>(in.thresholds.size());
  std::vector<int16_t> symbols(count);
  std::vector<uint8_t> indexes(count);
  std::vector<float> y_hat(count);
  CHECK(entropy::quantize_group({in.y.data(), in.mean.data(), in.raw_scale.data(),
                                 in.thresholds.data(), symbols.data(), indexes.data(), y_hat.data(),
                                 static_cast<int64_t>(count), num_thresholds, skip_below}) ==
        expected_bits);

  const Device<float> y(in.y), mean(in.mean), raw_scale(in.raw_scale), thresholds(in.thresholds);
  const Device<int16_t> device_symbols(count);
  const Device<uint8_t> device_indexes(count);
  const Device<float> device_y_hat(count);
  const Device<uint32_t> non_finite(1);
  groupedmixer::clear_device_word(non_finite.data(), nullptr);
  entropy::launch_quantize_group({y.data(), mean.data(), raw_scale.data(), thresholds.data(),
                                  device_symbols.data(), device_indexes.data(), device_y_hat.data(),
                                  static_cast<int64_t>(count), num_thresholds, skip_below},
                                 non_finite.data(), nullptr);
  CHECK(device_symbols == symbols);
  CHECK(device_indexes == indexes);
  CHECK(groupedmixer::read_device_word(non_finite.data(), nullptr) == expected_bits);
  // A sum that is not a number has no agreed bits; callers refuse it.
  if (expected_bits == 0) CHECK(device_y_hat == y_hat);
}

void check_scale_indexes(const Symbols& in, uint32_t expected_bits) {
  const size_t count = in.y.size();
  const int64_t num_thresholds = static_cast<int64_t>(in.thresholds.size());
  std::vector<uint8_t> indexes(count);
  CHECK(entropy::scale_indexes({in.raw_scale.data(), in.mean.data(), in.thresholds.data(),
                                indexes.data(), static_cast<int64_t>(count), num_thresholds}) ==
        expected_bits);

  const Device<float> mean(in.mean), raw_scale(in.raw_scale), thresholds(in.thresholds);
  const Device<uint8_t> device_indexes(count);
  const Device<uint32_t> non_finite(1);
  groupedmixer::clear_device_word(non_finite.data(), nullptr);
  entropy::launch_scale_indexes(
      {raw_scale.data(), mean.data(), thresholds.data(), device_indexes.data(),
       static_cast<int64_t>(count), num_thresholds},
      non_finite.data(), nullptr);
  CHECK(device_indexes == indexes);
  CHECK(groupedmixer::read_device_word(non_finite.data(), nullptr) == expected_bits);
}

void check_dequantize_group(Random& random, const std::vector<float>& mean) {
  const int64_t count = static_cast<int64_t>(mean.size());
  std::vector<int16_t> symbols;
  for (int64_t i = 0; i < count; ++i) {
    symbols.push_back(static_cast<int16_t>(uniform(random, -32768, 32767)));
  }
  std::vector<float> y_hat(mean.size());
  entropy::dequantize_group({symbols.data(), mean.data(), y_hat.data(), count});

  const Device<int16_t> device_symbols(symbols);
  const Device<float> device_mean(mean), device_y_hat(mean.size());
  entropy::launch_dequantize_group(
      {device_symbols.data(), device_mean.data(), device_y_hat.data(), count}, nullptr);
  CHECK(device_y_hat == y_hat);
}

void test_symbols(Random& random) {
  for (const int count : {0, 1, 31, 255, 256, 257, 1000}) {
    for (const int num_thresholds : {0, 1, 63, 255}) {
      const Symbols in = random_symbols(random, count, num_thresholds);
      for (const int skip_below : {0, 1, num_thresholds / 2, num_thresholds, num_thresholds + 1}) {
        check_quantize_group(in, skip_below, 0);
      }
      check_scale_indexes(in, 0);
      check_dequantize_group(random, in.mean);
    }
  }

  // More elements than the grid has threads.
  constexpr int kManyElements = 4096 * 256 + 77;
  const Symbols many = random_symbols(random, kManyElements, 2);
  check_quantize_group(many, 1, 0);
  check_scale_indexes(many, 0);
  check_dequantize_group(random, many.mean);

  for (const float bad : {kInfinity, -kInfinity, kNan, -kNan}) {
    for (uint32_t bits = 1; bits < 8; ++bits) {
      Symbols in = random_symbols(random, 300, 63);
      const auto spoil = [&](uint32_t bit, std::vector<float>* values) {
        if ((bits & bit) != 0) (*values)[static_cast<size_t>(uniform(random, 0, 299))] = bad;
      };
      spoil(entropy::kNonFiniteY, &in.y);
      spoil(entropy::kNonFiniteMean, &in.mean);
      spoil(entropy::kNonFiniteRawScale, &in.raw_scale);
      check_quantize_group(in, 5, bits);
      check_scale_indexes(in, bits & ~static_cast<uint32_t>(entropy::kNonFiniteY));
    }
  }
}

// ---- strict/gemm_cuda.cu ------------------------------------------------------------------------

namespace strict = groupedmixer::strict;
using strict::Activation;
using strict::kernels;

struct LinearCase {
  int64_t rows, depth, width;
  Activation activation;
  bool norm, residual;
  int64_t padding;  // floats between rows, of all matrices
};

void check_linear(Random& random, const LinearCase& c) {
  const int64_t x_stride = c.depth + c.padding, out_stride = c.width + c.padding;
  const std::vector<float> x = noise(random, c.rows * x_stride, 1.0f);
  const std::vector<float> weight = noise(random, c.width * c.depth, 0.3f);
  const std::vector<float> bias = noise(random, c.width, 1.0f);
  const std::vector<float> residual = noise(random, c.rows * out_stride, 1.0f);
  const std::vector<float> norm_weight = noise(random, c.depth, 1.0f);
  const std::vector<float> norm_bias = noise(random, c.depth, 1.0f);
  const strict::PackedLinear packed =
      strict::pack_linear(weight.data(), bias.data(), c.width, c.depth);
  std::vector<float> normed(static_cast<size_t>(c.rows * c.depth));
  std::vector<float> out = noise(random, c.rows * out_stride, 1.0f);  // gaps stay as they are

  const Device<float> device_x(x), device_residual(residual), device_out(out);
  const Device<float> device_weight({packed.weight.begin(), packed.weight.end()});
  const Device<float> device_bias({packed.bias.begin(), packed.bias.end()});
  const Device<float> device_norm_weight(norm_weight), device_norm_bias(norm_bias);

  const auto params = [&](const float* from, const float* w, const float* b, float* to,
                          const float* r, const float* nw, const float* nb) {
    strict::LinearParams p{from, x_stride, w, b, to, out_stride, c.rows, c.depth, c.width};
    p.activation = c.activation;
    if (c.residual) p.residual = r;
    p.residual_stride = out_stride;
    if (c.norm) p.norm_weight = nw;
    p.norm_bias = nb;
    p.normed = normed.data();
    return p;
  };
  kernels().linear(params(x.data(), packed.weight.data(), packed.bias.data(), out.data(),
                          residual.data(), norm_weight.data(), norm_bias.data()));
  strict::launch_linear(
      params(device_x.data(), device_weight.data(), device_bias.data(), device_out.data(),
             device_residual.data(), device_norm_weight.data(), device_norm_bias.data()),
      nullptr);
  CHECK(device_out == out);
}

void check_norm(Random& random, int64_t rows, int64_t width) {
  const std::vector<float> x = noise(random, rows * width, 2.0f);
  const std::vector<float> weight = noise(random, width, 1.0f), bias = noise(random, width, 1.0f);
  std::vector<float> out(x.size());
  kernels().norm({x.data(), width, weight.data(), bias.data(), out.data(), width, rows, width});
  const Device<float> device_x(x), device_weight(weight), device_bias(bias), device_out(x.size());
  strict::launch_norm({device_x.data(), width, device_weight.data(), device_bias.data(),
                       device_out.data(), width, rows, width},
                      nullptr);
  CHECK(device_out == out);
}

// A sum of -0 stays -0: nothing is added for what pads a chunk.
void check_signed_zero() {
  const std::vector<float> x(5, 0.0f), weight(5, -1.0f), bias(1, -0.0f);
  const strict::PackedLinear packed = strict::pack_linear(weight.data(), bias.data(), 1, 5);
  const Device<float> device_x(x), device_out(1);
  const Device<float> device_weight({packed.weight.begin(), packed.weight.end()});
  const Device<float> device_bias({packed.bias.begin(), packed.bias.end()});
  strict::launch_linear(
      {device_x.data(), 5, device_weight.data(), device_bias.data(), device_out.data(), 1, 1, 5, 1},
      nullptr);
  CHECK(device_out == bias);
}

void test_linear(Random& random) {
  const groupedmixer::ScopedFloatMode mode;
  check_signed_zero();
  constexpr Activation kNone = Activation::kNone, kGelu = Activation::kGelu;
  const LinearCase cases[] = {
      {1, 1, 1, kNone, false, false, 0},
      {33, 32, 40, kNone, false, true, 0},
      {7, 129, 97, kGelu, false, false, 4},
      {40, 128, 64, kNone, true, false, 0},
      {70, 256, 96, kGelu, true, true, 12},
      {5, 288, 64, kNone, false, false, 0},
      {37, 384, 33, Activation::kLeakyRelu, false, true, 0},
      {34, 640, 35, kNone, false, true, 4},
      {3, 1024, 64, kNone, false, true, 0},
      {33, 900, 32, kGelu, false, false, 0},
      {4097, 36, 65, kNone, false, false, 0},  // as many rows as pixels have
  };
  for (const LinearCase& c : cases) check_linear(random, c);
  for (const int64_t rows : {0, 1, 15, 16, 17}) {
    for (const int64_t width : {32, 96, 384}) check_norm(random, rows, width);
  }
}

// ---- strict/attention_cuda.cu -------------------------------------------------------------------

void check_window_attention(Random& random, int64_t height, int64_t width, int64_t heads,
                            bool shifted) {
  constexpr int64_t kSide = 2 * strict::kWindow - 1;
  const int64_t d = heads * strict::kHeadDim;
  const std::vector<float> qkv = noise(random, height * width * 3 * d, 1.0f);
  const std::vector<float> bias = noise(random, heads * kSide * kSide, 1.0f);
  std::vector<float> out(static_cast<size_t>(height * width * d));
  std::vector<float> scratch(static_cast<size_t>(strict::kWindowScratch));
  const int64_t offset = shifted ? strict::kWindow / 2 : 0;
  const auto next_cut = [&](int64_t at, int64_t length) {
    const int64_t cut = (at - offset + strict::kWindow) / strict::kWindow * strict::kWindow;
    return std::min(length, at < offset ? offset : cut + offset);
  };
  for (int64_t top = 0; top < height; top = next_cut(top, height)) {
    for (int64_t left = 0; left < width; left = next_cut(left, width)) {
      const int64_t rows = next_cut(top, height) - top, columns = next_cut(left, width) - left;
      for (int64_t head = 0; head < heads; ++head) {
        kernels().window_attention({qkv.data(), width, heads, head, top, left, rows, columns, 0,
                                    rows * columns, bias.data(), out.data(), scratch.data()});
      }
    }
  }
  const Device<float> device_qkv(qkv), device_bias(bias), device_out(out.size());
  strict::launch_window_attention(
      {device_qkv.data(), height, width, heads, shifted, device_bias.data(), device_out.data()},
      nullptr);
  CHECK(device_out == out);
}

// All steps; after each the outputs and the whole cache are the same.
void check_append_attention(Random& random, int64_t tokens, int64_t heads, int64_t capacity) {
  const int64_t d = heads * strict::kHeadDim, stride = 3 * d + 4;
  const strict::KvCache layout{heads, capacity};
  const std::vector<float> bias = noise(random, heads * capacity * capacity, 1.0f);
  std::vector<uint16_t> cache(static_cast<size_t>(layout.size(tokens)));
  std::vector<float> scratch(static_cast<size_t>(strict::append_scratch(capacity)));
  const Device<uint16_t> device_cache(cache);
  const Device<float> device_bias(bias);
  for (int64_t step = 0; step < capacity; ++step) {
    // Now and then numbers that binary16 does not hold.
    const std::vector<float> qkv = noise(random, tokens * stride, step % 7 == 3 ? 40000.0f : 1.0f);
    std::vector<float> out(static_cast<size_t>(tokens * d));
    for (int64_t token = 0; token < tokens; token += strict::kTokenBlock) {
      kernels().append_attention({qkv.data() + token * stride, stride,
                                  cache.data() + token / strict::kTokenBlock * layout.block_size(),
                                  bias.data(), out.data() + token * d, d,
                                  std::min(strict::kTokenBlock, tokens - token), heads, step,
                                  capacity, scratch.data()});
    }
    const Device<float> device_qkv(qkv), device_out(out.size());
    strict::launch_append_attention(
        {device_qkv.data(), stride, device_cache.data(), device_bias.data(), device_out.data(), d,
         tokens, heads, step, capacity, nullptr},
        nullptr);
    CHECK(device_out == out);
    CHECK(device_cache == cache);
  }
}

void test_attention(Random& random) {
  const groupedmixer::ScopedFloatMode mode;
  for (const bool shifted : {false, true}) {
    check_window_attention(random, 1, 1, 1, shifted);
    check_window_attention(random, 3, 5, 2, shifted);
    check_window_attention(random, 8, 16, 1, shifted);
    check_window_attention(random, 13, 21, 2, shifted);
  }
  check_append_attention(random, 1, 1, 3);
  check_append_attention(random, 37, 2, 19);
  check_append_attention(random, 16, 1, 135);  // more than a segment of steps
}

// ---- entropy/rans_cuda.cu -----------------------------------------------------------------------

struct CoderCase {
  std::vector<std::vector<int16_t>> symbols;  // of each group
  std::vector<std::vector<uint8_t>> indexes;
  int64_t skip_below;
};

// Where a decoder of the stream stands after its header, which ends `headers` bytes in.
entropy::RansCursor cursor_of(const std::vector<uint8_t>& stream) {
  constexpr uint32_t kLanes[] = {1, 4, 8, 16, 32};
  entropy::RansCursor cursor{};
  cursor.lanes = kLanes[stream[0]];
  size_t at = 1;
  uint32_t escapes = 0;
  for (int shift = 0;; shift += 7) {
    escapes |= (stream[at] & 0x7fu) << shift;
    if (stream[at++] < 0x80) break;
  }
  for (uint32_t lane = 0; lane < cursor.lanes; ++lane, at += 4) {
    std::memcpy(&cursor.states[lane], stream.data() + at, 4);
  }
  cursor.word = static_cast<uint32_t>(at);
  cursor.escapes_end = static_cast<uint32_t>(stream.size());
  cursor.words_end = cursor.escape = cursor.escapes_end - escapes;
  return cursor;
}

// Decodes all groups and says what was wrong.
entropy::RansFault decode_groups(const std::vector<uint8_t>& stream, const CoderCase& c,
                                 const entropy::Tables& tables, bool expect_symbols) {
  using entropy::RansFault;
  const auto all = [](const auto* first, size_t count) {
    return std::vector<std::decay_t<decltype(*first)>>(first, first + count);
  };
  size_t entries = 0;
  for (int64_t i = 0; i < tables.size(); ++i) {
    entries += static_cast<size_t>(tables.table(i).num_values) + 1;
  }
  const auto size = static_cast<size_t>(tables.size());
  const Device<entropy::Table> rows(all(tables.all(), size));
  const Device<entropy::EncodeEntry> slots(all(tables.encode_entries(), entries));
  const Device<uint32_t> points(all(tables.decode_entries(0), size * entropy::kTotal));
  const Device<uint8_t> data(stream);
  const Device<entropy::RansCursor> cursor(std::vector<entropy::RansCursor>{cursor_of(stream)});
  for (size_t group = 0; group < c.symbols.size(); ++group) {
    const Device<uint8_t> indexes(c.indexes[group]);
    const Device<int16_t> symbols(c.symbols[group].size());
    entropy::launch_rans_decode({data.data(),
                                 cursor.data(),
                                 indexes.data(),
                                 symbols.data(),
                                 static_cast<int64_t>(c.symbols[group].size()),
                                 c.skip_below,
                                 {rows.data(), slots.data(), points.data(), tables.size()}},
                                nullptr);
    if (cursor.data()->fault != RansFault::kNone) return cursor.data()->fault;
    if (expect_symbols) CHECK(symbols == c.symbols[group]);
  }
  const entropy::RansCursor& end = *cursor.data();
  if (expect_symbols) {
    CHECK(end.word == end.words_end && end.escape == end.escapes_end);
    for (uint32_t lane = 0; lane < end.lanes; ++lane) {
      CHECK(end.states[lane] == entropy::kLowerBound);
    }
  }
  return RansFault::kNone;
}

void test_rans(Random& random) {
  using entropy::RansFault;
  // A table with far values, one of two slots, one around zero.
  std::vector<uint16_t> counts(601, 6);
  counts[300] = static_cast<uint16_t>(entropy::kTotal - 600 * 6);
  for (const int count : {4095, 1, 100, 900, 2000, 900, 100, 96}) {
    counts.push_back(static_cast<uint16_t>(count));
  }
  const std::vector<int32_t> sizes = {601, 2, 6}, offsets = {-300, 7, -2};
  const entropy::Tables tables(counts.data(), static_cast<int64_t>(counts.size()), sizes.data(),
                               offsets.data(), 3);
  for (const int lanes : {1, 4, 8, 16, 32}) {
    for (const int64_t skip_below : {0, 1, 3}) {
      CoderCase c{{}, {}, skip_below};
      entropy::Encoder encoder;
      for (const int count : {0, 1, 31, 32, 33, 300}) {
        std::vector<int16_t> symbols;
        std::vector<uint8_t> indexes;
        for (int i = 0; i < count; ++i) {
          const int index = uniform(random, 0, 2);
          const entropy::Table& table = tables.table(index);
          int value = table.offset + uniform(random, 0, table.num_values - 1);
          if (uniform(random, 0, 20) == 0) value = uniform(random, -32768, 32767);
          indexes.push_back(static_cast<uint8_t>(index));
          symbols.push_back(static_cast<int16_t>(index < skip_below ? 0 : value));
        }
        encoder.push(symbols.data(), indexes.data(), count, tables, skip_below);
        c.symbols.push_back(symbols);
        c.indexes.push_back(indexes);
      }
      const std::vector<uint8_t> stream = encoder.finish(lanes);
      CHECK(decode_groups(stream, c, tables, true) == RansFault::kNone);
      if (skip_below == 3) continue;  // no symbols at all

      // Damaged ones: whatever the host's decoder says before its end, this one says too.
      for (int i = 0; i < 20; ++i) {
        std::vector<uint8_t> damaged = stream;
        const size_t header = 8 + 4 * static_cast<size_t>(lanes);
        if (damaged.size() <= header) break;
        const int last = static_cast<int>(damaged.size()) - 1;
        damaged[static_cast<size_t>(uniform(random, static_cast<int>(header), last))] ^=
            static_cast<uint8_t>(1 << uniform(random, 0, 7));
        const RansFault fault = decode_groups(damaged, c, tables, false);
        entropy::Decoder decoder(damaged.data(), damaged.size());
        bool rejected = false;
        try {
          for (size_t group = 0; group < c.symbols.size(); ++group) {
            std::vector<int16_t> symbols(c.symbols[group].size());
            decoder.pop(c.indexes[group].data(), static_cast<int64_t>(symbols.size()), tables,
                        skip_below, symbols.data());
          }
        } catch (const entropy::StreamError&) {
          rejected = true;
        }
        CHECK(rejected == (fault != RansFault::kNone));
      }
      c.indexes.back().back() = 3;
      CHECK(decode_groups(stream, c, tables, false) == RansFault::kIndex);
    }
  }
}

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    Random random(1);
    test_symbols(random);
    test_linear(random);
    test_attention(random);
    test_rans(random);
  }
  std::puts("passed");
}
