// SPDX-License-Identifier: MIT
//
// The strict layers' CUDA kernels, executed on the host (cuda_host/cuda_runtime.h), give the bits
// of their CPU functions, whatever the order of threads. One function a family of kernels.

#include <algorithm>
#include <utility>
#include <vector>

#include "common/float_mode.h"
#include "cuda_testing.h"
#include "strict/cuda.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"

namespace {

using cuda_host::Order;

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
      // Larger tiles, where there are many of them.
      {33, 160, 2049, kNone, true, true, 0},
      {33, 513, 2050, kGelu, false, false, 4},
      {4097, 36, 65, kNone, false, false, 0},  // as many rows as pixels have
  };
  for (const LinearCase& c : cases) check_linear(random, c);
  for (const int64_t rows : {0, 1, 15, 16, 17}) {
    for (const int64_t width : {32, 96, 384}) check_norm(random, rows, width);
  }
}

// ---- strict/attention_cuda.cu -------------------------------------------------------------------

// Tiles side by side; what lies between them stays as it is.
void check_window_attention(Random& random, const std::vector<std::pair<int, int>>& sides,
                            int64_t heads, bool shifted) {
  constexpr int64_t kSide = 2 * strict::kWindow - 1;
  groupedmixer::TileSet tiles;
  for (const auto& [height, width] : sides) tiles.add(height, width);
  const int64_t d = heads * strict::kHeadDim;
  const std::vector<float> qkv = noise(random, tiles.tokens * 3 * d, 1.0f);
  const std::vector<float> bias = noise(random, heads * kSide * kSide, 1.0f);
  std::vector<float> out = noise(random, tiles.tokens * d, 1.0f);
  const Device<float> device_qkv(qkv), device_bias(bias), device_out(out);
  std::vector<float> scratch(static_cast<size_t>(strict::kWindowScratch));
  const int64_t offset = shifted ? strict::kWindow / 2 : 0;
  const auto next_cut = [&](int64_t at, int64_t length) {
    const int64_t cut = (at - offset + strict::kWindow) / strict::kWindow * strict::kWindow;
    return std::min(length, at < offset ? offset : cut + offset);
  };
  for (int32_t i = 0; i < tiles.count; ++i) {
    const auto& [first, height, width] = tiles.tiles[i];
    for (int64_t top = 0; top < height; top = next_cut(top, height)) {
      for (int64_t left = 0; left < width; left = next_cut(left, width)) {
        const int64_t rows = next_cut(top, height) - top, columns = next_cut(left, width) - left;
        for (int64_t head = 0; head < heads; ++head) {
          kernels().window_attention({qkv.data() + first * 3 * d, width, heads, head, top, left,
                                      rows, columns, 0, rows * columns, bias.data(),
                                      out.data() + first * d, scratch.data()});
        }
      }
    }
  }
  strict::launch_window_attention(
      {device_qkv.data(), tiles, heads, shifted, device_bias.data(), device_out.data()}, nullptr);
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

// The same from the residual stream on.
void check_cross_attention(Random& random, int64_t tokens, int64_t heads, int64_t capacity) {
  const int64_t d = heads * strict::kHeadDim;
  const strict::KvCache layout{heads, capacity};
  const std::vector<float> step_bias = noise(random, heads * capacity * capacity, 1.0f);
  const std::vector<float> norm_weight = noise(random, d, 1.0f), norm_bias = noise(random, d, 1.0f);
  const std::vector<float> weight = noise(random, 3 * d * d, 0.2f);
  const std::vector<float> bias = noise(random, 3 * d, 1.0f);
  const strict::PackedLinear packed = strict::pack_linear(weight.data(), bias.data(), 3 * d, d);
  std::vector<uint16_t> cache(static_cast<size_t>(layout.size(tokens)));
  std::vector<float> scratch(static_cast<size_t>(strict::append_scratch(capacity)));
  std::vector<float> normed(static_cast<size_t>(tokens * d)), qkv(3 * normed.size());
  const Device<uint16_t> device_cache(cache);
  const Device<float> device_step_bias(step_bias), device_norm_weight(norm_weight);
  const Device<float> device_norm_bias(norm_bias);
  const Device<float> device_weight({packed.weight.begin(), packed.weight.end()});
  const Device<float> device_bias({packed.bias.begin(), packed.bias.end()});
  for (int64_t step = 0; step < capacity; ++step) {
    const std::vector<float> x = noise(random, tokens * d, 1.0f);
    std::vector<float> out(x.size());
    strict::LinearParams p{
        x.data(), d, packed.weight.data(), packed.bias.data(), qkv.data(), 3 * d, tokens, d, 3 * d};
    p.norm_weight = norm_weight.data();
    p.norm_bias = norm_bias.data();
    p.normed = normed.data();
    kernels().linear(p);
    for (int64_t token = 0; token < tokens; token += strict::kTokenBlock) {
      kernels().append_attention({qkv.data() + token * 3 * d, 3 * d,
                                  cache.data() + token / strict::kTokenBlock * layout.block_size(),
                                  step_bias.data(), out.data() + token * d, d,
                                  std::min(strict::kTokenBlock, tokens - token), heads, step,
                                  capacity, scratch.data()});
    }
    const Device<float> device_x(x), device_out(out.size());
    strict::launch_cross_attention(
        {device_x.data(), device_norm_weight.data(), device_norm_bias.data(), device_weight.data(),
         device_bias.data(), device_cache.data(), device_step_bias.data(), device_out.data(),
         tokens, heads, step, capacity},
        nullptr);
    CHECK(device_out == out);
    CHECK(device_cache == cache);
  }
}

void test_attention(Random& random) {
  const groupedmixer::ScopedFloatMode mode;
  for (const bool shifted : {false, true}) {
    check_window_attention(random, {{1, 1}}, 1, shifted);
    check_window_attention(random, {{8, 16}}, 1, shifted);
    check_window_attention(random, {{13, 21}, {3, 5}, {1, 1}, {4, 33}}, 2, shifted);
  }
  check_append_attention(random, 1, 1, 3);
  check_append_attention(random, 37, 2, 19);
  check_append_attention(random, 16, 1, 135);  // more than a segment of steps
  check_cross_attention(random, 1, 1, 3);
  check_cross_attention(random, 37, 2, 19);
  check_cross_attention(random, 17, 9, 2);  // three segments of channels
}

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    Random random(1);
    test_linear(random);
    test_attention(random);
  }
  std::puts("passed");
}
