// SPDX-License-Identifier: MIT
//
// The register tile of all matrix products: R rows of A times V vectors of columns of packed B,
// over one segment of K. Nothing but the order of docs/numerics.md, section 2: one chain of fused
// multiply-adds an output and segment.

#pragma once

#include "strict/kernels.h"
#include "strict/lanes_isa.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {

// The largest tiles whose accumulators stay in registers, with room for B and a broadcast of A.
// Wide ones need fewer loads and instructions a multiply-add: where another thread has a share of
// the core they are a fifth faster. What is too narrow for them goes to the others.
#if defined(__AVX512F__)
constexpr int kWideRows = 6, kWideVectors = 4;
constexpr int kTileRows = 12, kTileVectors = 2;
#elif defined(__AVX2__)
constexpr int kWideRows = 6, kWideVectors = 1;
constexpr int kTileRows = 6, kTileVectors = 1;
#else
constexpr int kWideRows = 4, kWideVectors = 1;
constexpr int kTileRows = 4, kTileVectors = 1;
#endif
constexpr int kTileColumns = kTileVectors * kLanes;
constexpr int kPanelVectors = kPanel / kLanes;

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

template <int R, int V>
struct Tile {
  Lanes sum[R][V];
};

// Columns of packed B from some row on.
struct Columns {
  const float* b;  // [depth, kPanel]
  int64_t panel;   // floats from a panel to the next one, for tiles of more than a panel
};

// Memory that will be read soon, fetched a little with every step of a chain: weights come from
// far away, and the first tile that needs them would wait.
struct Ahead {
  const char* next = nullptr;
  int64_t step = 0;   // bytes
  int64_t panel = 0;  // bytes from a panel to the next one
};

// sum[r][v] = fma(a[r][k], b[k][v], sum[r][v]) for k = 0, 1, ... depth - 1.
template <int R, int V>
GROUPEDMIXER_STRICT void run_chains(const float* a,  // [R, depth]
                                    int64_t a_stride, Columns columns, int64_t depth,
                                    Tile<R, V>& tile, Ahead ahead = {}) {
  // Three rows share a pointer: addresses are pointer + {0, 1, 2} strides, and all fit in
  // registers.
  constexpr int kPointers = (R + 2) / 3;
  constexpr int kPanels = (V + kPanelVectors - 1) / kPanelVectors;
  const float* rows[kPointers];
  repeat<kPointers>(GROUPEDMIXER_EACH(i) { rows[i] = a + 3 * i * a_stride; });
  const float* panels[kPanels];
  repeat<kPanels>(GROUPEDMIXER_EACH(i) { panels[i] = columns.b + i * columns.panel; });
  const auto step = GROUPEDMIXER_EACH(k) {
    Lanes column[V];
    repeat<V>(GROUPEDMIXER_EACH(v) {
      column[v] = load(panels[v / kPanelVectors] + k * kPanel + v % kPanelVectors * kLanes);
    });
    repeat<R>(GROUPEDMIXER_EACH(r) {
      const Lanes row = broadcast(rows[r / 3][r % 3 * a_stride + k]);
      repeat<V>(GROUPEDMIXER_EACH(v) { tile.sum[r][v] = fused(row, column[v], tile.sum[r][v]); });
    });
  };
  const auto advance = GROUPEDMIXER_EACH(steps) {
    // The asm keeps the compiler from making each address a pointer of its own, and spilling.
    repeat<kPanels>(GROUPEDMIXER_EACH(i) {
      panels[i] += steps * kPanel;
      asm("" : "+r"(panels[i]));
    });
    repeat<kPointers>(GROUPEDMIXER_EACH(i) {
      rows[i] += steps;
      asm("" : "+r"(rows[i]));
    });
  };
  int64_t k = 0;
  for (; k + 1 < depth; k += 2) {
    repeat<kPanels>(
        GROUPEDMIXER_EACH(i) { __builtin_prefetch(ahead.next + i * ahead.panel, 0, 2); });
    ahead.next += ahead.step;
    step(Constant<0>{});
    step(Constant<1>{});
    advance(Constant<2>{});
  }
  if (k < depth) step(Constant<0>{});
}

// Calls visit.template run<R>(first row) for tiles of R <= Most rows that cover `rows` rows and
// differ in size by at most one: small tiles have too few chains to hide their latency.
template <int R, typename Visit>
GROUPEDMIXER_STRICT void visit_one_tile(int64_t size, int64_t begin, const Visit& visit) {
  if constexpr (R > 0) {
    if (size == R) {
      visit.template run<R>(begin);
    } else {
      visit_one_tile<R - 1>(size, begin, visit);
    }
  }
}

template <int Most, typename Visit>
GROUPEDMIXER_STRICT void visit_tiles(int64_t rows, const Visit& visit) {
  const int64_t count = (rows + Most - 1) / Most;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = (rows - begin) / (count - i);
    visit_one_tile<Most>(size, begin, visit);
    begin += size;
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
