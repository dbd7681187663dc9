// SPDX-License-Identifier: MIT
//
// The register tile of all matrix products: R rows of A times C vectors of columns of packed B,
// over all of K. Nothing but the order of docs/numerics.md, section 2: one chain of fused
// multiply-adds an output and segment, segments added from left to right.

#pragma once

#include "strict/lanes_isa.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

// The largest tile whose accumulators stay in registers, with room for B and a broadcast of A.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
constexpr int kTileVectors = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
constexpr int kTileVectors = 1;
#else
constexpr int kTileRows = 4;
constexpr int kTileVectors = 1;
#endif
constexpr int kTileColumns = kTileVectors * kLanes;

// A whole number that is part of the type.
template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};

// body(Constant<0>), body(Constant<1>), ... The compiler keeps an array in registers only if no
// loop variable ever indexes it, so loops over a tile are these.
template <int Count, int I = 0, typename Body>
GROUPEDMIXER_STRICT void repeat(const Body& body) {
  if constexpr (I < Count) {
    body(Constant<I>{});
    repeat<Count, I + 1>(body);
  }
}
#define GROUPEDMIXER_EACH(i) [&](auto i) __attribute__((always_inline))

template <int R>
struct Tile {
  Lanes sum[R][kTileVectors];
};

// Memory that will be read soon, fetched a little with every step of a chain: a panel of weights
// comes from far away, and its first tile would wait for it.
struct Ahead {
  const char* next = nullptr;
  int64_t step = 0;  // bytes
};

// The chains of one segment.
template <int R>
GROUPEDMIXER_STRICT void run_segment(const float* a,  // [R, depth]
                                     int64_t a_stride,
                                     const float* b,  // [depth, b_stride]
                                     int64_t b_stride, int64_t depth, Tile<R>& tile, Ahead& ahead) {
  // Three rows share a pointer: addresses are pointer + {0, 1, 2} strides, and all fit in
  // registers.
  constexpr int kPointers = (R + 2) / 3;
  const float* rows[kPointers];
  repeat<kPointers>(GROUPEDMIXER_EACH(i) { rows[i] = a + 3 * i * a_stride; });
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    __builtin_prefetch(ahead.next, 0, 2);
    ahead.next += ahead.step;
    Lanes columns[kTileVectors];
    repeat<kTileVectors>(GROUPEDMIXER_EACH(c) { columns[c] = load(b + c * kLanes); });
    repeat<R>(GROUPEDMIXER_EACH(r) {
      const Lanes row = broadcast(rows[r / 3][r % 3 * a_stride]);
      repeat<kTileVectors>(
          GROUPEDMIXER_EACH(c) { tile.sum[r][c] = fused(row, columns[c], tile.sum[r][c]); });
    });
    repeat<kPointers>(GROUPEDMIXER_EACH(i) {
      ++rows[i];
      asm("" : "+r"(rows[i]));  // or the compiler makes it a pointer a row, and spills
    });
  }
}

// dot(a[r], b[:, column], start[column]).
template <int R>
GROUPEDMIXER_STRICT Tile<R> dot_tile(const float* a,  // [R, depth]
                                     int64_t a_stride,
                                     const float* b,  // [depth, b_stride]
                                     int64_t b_stride, int64_t depth,
                                     const Lanes (&start)[kTileVectors], Ahead ahead = {}) {
  Tile<R> tile;
  repeat<R>(GROUPEDMIXER_EACH(r) {
    repeat<kTileVectors>(GROUPEDMIXER_EACH(c) { tile.sum[r][c] = start[c]; });
  });
  run_segment<R>(a, a_stride, b, b_stride, depth < kSegment ? depth : kSegment, tile, ahead);
  // Running totals go through memory: the registers are all taken.
  alignas(64) float totals[R * kTileColumns];
  for (int64_t k = kSegment; k < depth; k += kSegment) {
    repeat<R>(GROUPEDMIXER_EACH(r) {
      repeat<kTileVectors>(GROUPEDMIXER_EACH(c) {
        store(totals + r * kTileColumns + c * kLanes, tile.sum[r][c]);
        tile.sum[r][c] = broadcast(0.0f);
      });
    });
    const int64_t size = depth - k < kSegment ? depth - k : kSegment;
    run_segment<R>(a + k, a_stride, b + k * b_stride, b_stride, size, tile, ahead);
    repeat<R>(GROUPEDMIXER_EACH(r) {
      repeat<kTileVectors>(GROUPEDMIXER_EACH(c) {
        tile.sum[r][c] = load(totals + r * kTileColumns + c * kLanes) + tile.sum[r][c];
      });
    });
  }
  return tile;
}

// Calls visit.template operator()<R>(first row) for tiles of R <= kTileRows rows that cover `rows`
// rows and differ in size by at most one: small tiles have too few chains to hide their latency.
template <typename Visit, int R = kTileRows>
GROUPEDMIXER_STRICT void visit_one_tile(int64_t size, int64_t begin, const Visit& visit) {
  if constexpr (R > 0) {
    if (size == R) {
      visit.template run<R>(begin);
    } else {
      visit_one_tile<Visit, R - 1>(size, begin, visit);
    }
  }
}

template <typename Visit>
GROUPEDMIXER_STRICT void visit_tiles(int64_t rows, const Visit& visit) {
  const int64_t count = (rows + kTileRows - 1) / kTileRows;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = (rows - begin) / (count - i);
    visit_one_tile(size, begin, visit);
    begin += size;
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
