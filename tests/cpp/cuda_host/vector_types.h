// SPDX-License-Identifier: MIT
//
// CUDA's short vectors, with its alignments: UndefinedBehaviorSanitizer reports a float4 read from
// where a GPU could not read it.

#pragma once

struct uint3 {
  unsigned int x, y, z;
};

struct dim3 {
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
      : x(x_), y(y_), z(z_) {}
  unsigned int x, y, z;
};

#define CUDA_HOST_VECTORS(Element, Name)                                 \
  struct alignas(2 * sizeof(Element)) Name##2 { Element x, y; };         \
  struct alignas(4 * sizeof(Element)) Name##4 { Element x, y, z, w; };   \
  inline Name##2 make_##Name##2(Element x, Element y) { return {x, y}; } \
  inline Name##4 make_##Name##4(Element x, Element y, Element z, Element w) { return {x, y, z, w}; }

CUDA_HOST_VECTORS(signed char, char)
CUDA_HOST_VECTORS(unsigned char, uchar)
CUDA_HOST_VECTORS(short, short)
CUDA_HOST_VECTORS(unsigned short, ushort)
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned int, uint)
CUDA_HOST_VECTORS(float, float)

#undef CUDA_HOST_VECTORS
