// SPDX-License-Identifier: MIT
//
// The two attentions of a block. Scores and weighted sums of a window are small matrix products
// with one lane a key and one lane a dimension; across groups a token has one query only, so there
// the lanes are tokens. Both follow docs/numerics.md, section 3, key by key.

#include "strict/gemm_isa.h"
#include "strict/kv_cache.h"
#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {
namespace {

static_assert(kHeadDim == 2 * kLanes && kHeadDim == kPanel && kTokenBlock == kLanes);
static_assert(kHeadDim <= kSegment && kWindowTokens <= kSegment);

// ---- windows ------------------------------------------------------------------------------------

// out[row, column] = dot(a[row], b[:, column], +0) for a tile of `depth` x kTileColumns of b, all
// of one segment.
struct ProductTile {
  const float* a;  // [rows, depth]
  int64_t a_stride;
  const float* b;  // [depth, kPanel]
  int64_t depth;
  float* out;  // [rows, kTileColumns]
  int64_t out_stride;

  template <int R>
  void run(int64_t row) const {
    Tile<R, kTileVectors> tile;
    repeat<R>(GROUPEDMIXER_EACH(r) {
      repeat<kTileVectors>(GROUPEDMIXER_EACH(c) { tile.sum[r][c] = broadcast(0.0f); });
    });
    run_chains(a + row * a_stride, a_stride, {b, 0}, depth, tile);
    repeat<R>(GROUPEDMIXER_EACH(r) {
      repeat<kTileVectors>(GROUPEDMIXER_EACH(c) {
        store(out + (row + r) * out_stride + c * kLanes, tile.sum[r][c]);
      });
    });
  }
};

// A cell's tokens in raster order.
struct Cell {
  const WindowAttentionParams& p;

  int64_t tokens() const { return p.rows * p.columns; }
  // In the grid.
  int64_t position(int64_t token) const {
    return (p.top + token / p.columns) * p.grid_width + p.left + token % p.columns;
  }
};

// scores[i, j] = exp(fma(scores[i, j], scale, bias) - largest), 0 for the lanes without a key.
// Returns the sum.
float soft_maximum(const WindowAttentionParams& p, int64_t query, int64_t padded, float* scores) {
  // The bias of a query and the keys of one row of the cell is a stretch of the table, backwards.
  constexpr int64_t kSide = 2 * kWindow - 1;
  const float* table = p.relative_bias + p.head * kSide * kSide;
  const int64_t row = query / p.columns, column = query % p.columns;
  float bias[kWindowTokens];
  int64_t token = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const float* stretch = table + (row - i + kWindow - 1) * kSide + column + kWindow - 1;
    for (int64_t j = 0; j < p.columns; ++j) bias[token++] = stretch[-j];
  }
  const int64_t keys = token;
  for (; token < padded; ++token) bias[token] = 0.0f;

  const Lanes scale = broadcast(kAttentionScale);
  for (int64_t i = 0; i < padded; i += kLanes) {
    store(scores + i, fused(load(scores + i), scale, load(bias + i)));
  }
  for (int64_t i = keys; i < padded; ++i) scores[i] = scores[0];
  Lanes largest = load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) largest = larger(load(scores + i), largest);
  float lane[kLanes];
  store(lane, largest);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lane[j] = larger(lane[j], lane[j + half]);
  }
  const Lanes maximum = broadcast(lane[0]);
  for (int64_t i = 0; i < padded; i += kLanes) {
    store(scores + i, exponential(load(scores + i) - maximum));
  }
  for (int64_t i = keys; i < padded; ++i) scores[i] = 0.0f;
  Lanes sum = load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) sum = sum + load(scores + i);
  return add_lanes(sum);
}

// ---- across groups
// --------------------------------------------------------------------------------

// Rows of 32 numbers, one a token, to 32 vectors with one lane a token. Lanes without a token are
// 0.
GROUPEDMIXER_STRICT void gather_tokens(const float* x, int64_t stride, int64_t tokens,
                                       float* out) {  // [kHeadDim, kLanes]
  for (int half = 0; half < kHeadDim; half += kLanes) {
    Lanes rows[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) {
      rows[t] = t < tokens ? load(x + t * stride + half) : broadcast(0.0f);
    }
    transpose(rows);
    for (int i = 0; i < kLanes; ++i) store(out + (half + i) * kLanes, rows[i]);
  }
}

GROUPEDMIXER_STRICT void scatter_tokens(const float* x,  // [kHeadDim, kLanes]
                                        int64_t tokens, float* out, int64_t stride) {
  for (int half = 0; half < kHeadDim; half += kLanes) {
    Lanes rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = load(x + (half + i) * kLanes);
    transpose(rows);
    for (int64_t t = 0; t < tokens; ++t) store(out + t * stride + half, rows[t]);
  }
}

// The cache comes from memory, not from a near cache, and its streams are too short for the
// processor to foresee. So each pass over keys or values fetches what the next pass reads, which
// lies at the same offsets: a head's values, then the keys of the next head or block.
GROUPEDMIXER_STRICT void fetch_ahead(const uint16_t* next, int64_t offset) {
  constexpr int64_t kLine = 64 / sizeof(uint16_t);
  if (offset % kLine == 0) __builtin_prefetch(next + offset, 0, 2);
}

// scores[i] = fma(dot(q, k_i, +0), scale, bias_i) of N steps at once, to hide the latency of a
// chain.
template <int N>
GROUPEDMIXER_STRICT void score_steps(const float* q,        // [kHeadDim, kLanes]
                                     const uint16_t* keys,  // [N, kHeadDim, kLanes]
                                     const uint16_t* next,  // [N, kHeadDim, kLanes]
                                     const float* bias,     // [N]
                                     float* scores) {       // [N, kLanes]
  Lanes sum[N];
  repeat<N>(GROUPEDMIXER_EACH(i) { sum[i] = broadcast(0.0f); });
  for (int d = 0; d < kHeadDim; ++d) {
    const Lanes query = load(q + d * kLanes);
    repeat<N>(GROUPEDMIXER_EACH(i) {
      const int64_t offset = (i * kHeadDim + d) * kLanes;
      sum[i] = fused(query, load_half(keys + offset), sum[i]);
      fetch_ahead(next, offset);
    });
  }
  const Lanes scale = broadcast(kAttentionScale);
  repeat<N>(GROUPEDMIXER_EACH(i) {
    store(scores + i * kLanes, fused(sum[i], scale, broadcast(bias[i])));
  });
}

// The chains of one segment of steps, for N dimensions at once.
template <int N>
GROUPEDMIXER_STRICT void weigh_segment(const float* e,          // [steps, kLanes]
                                       const uint16_t* values,  // [steps, kHeadDim, kLanes]
                                       const uint16_t* next,    // as values
                                       int64_t steps, Lanes (&sum)[N]) {
  repeat<N>(GROUPEDMIXER_EACH(i) { sum[i] = broadcast(0.0f); });
  for (int64_t s = 0; s < steps; ++s) {
    const Lanes weight = load(e + s * kLanes);
    repeat<N>(GROUPEDMIXER_EACH(i) {
      const int64_t offset = (s * kHeadDim + i) * kLanes;
      sum[i] = fused(weight, load_half(values + offset), sum[i]);
      fetch_ahead(next, offset);
    });
  }
}

// out[d] = dot(e, values[:, d], +0) / total for N dimensions.
template <int N>
GROUPEDMIXER_STRICT void weigh_values(const float* e,          // [steps, kLanes]
                                      const uint16_t* values,  // [steps, kHeadDim, kLanes]
                                      const uint16_t* next,    // as values
                                      int64_t steps, Lanes total,
                                      float* out) {  // [N, kLanes]
  Lanes whole[N];
  weigh_segment<N>(e, values, next, steps < kSegment ? steps : kSegment, whole);
  for (int64_t s = kSegment; s < steps; s += kSegment) {
    Lanes sum[N];
    const int64_t size = steps - s < kSegment ? steps - s : kSegment;
    weigh_segment<N>(e + s * kLanes, values + s * KvCache::kStep, next + s * KvCache::kStep, size,
                     sum);
    repeat<N>(GROUPEDMIXER_EACH(i) { whole[i] = whole[i] + sum[i]; });
  }
  repeat<N>(GROUPEDMIXER_EACH(i) { store(out + i * kLanes, whole[i] / total); });
}

// One head of one block of tokens, its keys and values appended.
void attend_to_cache(const AppendAttentionParams& p, int64_t head, const float* q,
                     const uint16_t* keys, const uint16_t* values, float* e, float* out) {
  const int64_t steps = p.step + 1;
  const float* bias = p.step_bias + (head * p.capacity + p.step) * p.capacity;
  const uint16_t* next = keys + KvCache{p.heads, p.capacity}.head_size();
  int64_t s = 0;
  const auto score = GROUPEDMIXER_EACH(count) {
    score_steps<count>(q, keys + s * KvCache::kStep, values + s * KvCache::kStep, bias + s,
                       e + s * kLanes);
    s += count;
  };
  while (s + 8 <= steps) score(Constant<8>{});
  if (s + 4 <= steps) score(Constant<4>{});
  if (s + 2 <= steps) score(Constant<2>{});
  if (s < steps) score(Constant<1>{});

  Lanes largest = load(e);
  for (s = 1; s < steps; ++s) largest = larger(load(e + s * kLanes), largest);
  // lane_sum over the steps: these 16 vectors are its lanes, and each has a token a lane.
  Lanes lane[kLanes];
  for (int j = 0; j < kLanes; ++j) lane[j] = broadcast(0.0f);
  for (s = 0; s < steps; ++s) {
    const Lanes weight = exponential(load(e + s * kLanes) - largest);
    store(e + s * kLanes, weight);
    lane[s % kLanes] = lane[s % kLanes] + weight;
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lane[j] = lane[j] + lane[j + half];
  }
  for (int d = 0; d < kHeadDim; d += kLanes) {
    weigh_values<kLanes>(e, values + d * kLanes, next + d * kLanes, steps, lane[0],
                         out + d * kLanes);
  }
}

}  // namespace

void window_attention(const WindowAttentionParams& params) {
  const WindowAttentionParams p = params;
  const Cell cell{p};
  const int64_t tokens = cell.tokens(), width = p.heads * kHeadDim;
  const int64_t queries = p.query_end - p.query_begin;
  const int64_t padded = (tokens + kPanel - 1) / kPanel * kPanel;
  float* query = p.scratch;                           // [queries, kHeadDim]
  float* keys = query + kWindowTokens * kHeadDim;     // panels: [padded / kPanel, kHeadDim, kPanel]
  float* values = keys + kWindowTokens * kHeadDim;    // [tokens, kHeadDim]
  float* scores = values + kWindowTokens * kHeadDim;  // [queries, kWindowTokens]
  for (int64_t i = 0; i < queries; ++i) {
    const float* q = p.qkv + cell.position(p.query_begin + i) * 3 * width + p.head * kHeadDim;
    for (int half = 0; half < kHeadDim; half += kLanes) {
      store(query + i * kHeadDim + half, load(q + half));
    }
  }
  for (int64_t first = 0; first < padded; first += kLanes) {
    Lanes rows[2][kLanes];
    for (int64_t t = 0; t < kLanes; ++t) {
      const bool real = first + t < tokens;
      const float* k =
          p.qkv + cell.position(real ? first + t : 0) * 3 * width + width + p.head * kHeadDim;
      for (int half = 0; half < 2; ++half) {
        rows[half][t] = real ? load(k + half * kLanes) : broadcast(0.0f);
        if (!real) continue;
        store(values + (first + t) * kHeadDim + half * kLanes, load(k + width + half * kLanes));
      }
    }
    for (int half = 0; half < 2; ++half) {
      transpose(rows[half]);
      float* panel = keys + first / kPanel * kPanel * kHeadDim + first % kPanel;
      for (int d = 0; d < kLanes; ++d) {
        store(panel + (half * kLanes + d) * kPanel, rows[half][d]);
      }
    }
  }
  for (int64_t key = 0; key < padded; key += kTileColumns) {
    const float* panel = keys + key / kPanel * kPanel * kHeadDim + key % kPanel;
    visit_tiles<kTileRows>(
        queries, ProductTile{query, kHeadDim, panel, kHeadDim, scores + key, kWindowTokens});
  }
  float totals[kWindowTokens];
  for (int64_t i = 0; i < queries; ++i) {
    totals[i] = soft_maximum(p, p.query_begin + i, padded, scores + i * kWindowTokens);
  }
  float* sums = query;  // [queries, kHeadDim]; the queries are done with
  for (int64_t d = 0; d < kHeadDim; d += kTileColumns) {
    visit_tiles<kTileRows>(
        queries, ProductTile{scores, kWindowTokens, values + d, tokens, sums + d, kHeadDim});
  }
  for (int64_t i = 0; i < queries; ++i) {
    const Lanes total = broadcast(totals[i]);
    float* out = p.out + cell.position(p.query_begin + i) * width + p.head * kHeadDim;
    for (int half = 0; half < kHeadDim; half += kLanes) {
      store(out + half, load(sums + i * kHeadDim + half) / total);
    }
  }
}

void append_attention(const AppendAttentionParams& params) {
  const AppendAttentionParams p = params;
  const KvCache layout{p.heads, p.capacity};
  const int64_t width = p.heads * kHeadDim;
  float* q = p.scratch;                  // [kHeadDim, kLanes]
  float* other = q + kHeadDim * kLanes;  // [kHeadDim, kLanes]
  float* e = other + kHeadDim * kLanes;  // [capacity, kLanes]
  for (int64_t head = 0; head < p.heads; ++head) {
    const float* qkv = p.qkv + head * kHeadDim;
    uint16_t* keys = p.cache + head * layout.head_size();
    uint16_t* values = keys + layout.values_offset();
    for (int part = 1; part < 3; ++part) {
      gather_tokens(qkv + part * width, p.qkv_stride, p.tokens, other);
      uint16_t* slot = (part == 1 ? keys : values) + p.step * KvCache::kStep;
      for (int64_t i = 0; i < KvCache::kStep; i += kLanes) {
        store_half(slot + i, clamp_to_half(load(other + i)));
      }
    }
    gather_tokens(qkv, p.qkv_stride, p.tokens, q);
    attend_to_cache(p, head, q, keys, values, e, other);
    scatter_tokens(other, p.tokens, p.out + head * kHeadDim, p.out_stride);
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
