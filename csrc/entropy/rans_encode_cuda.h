// SPDX-License-Identifier: MIT
//
// The coder's encoder on a GPU: all groups of all streams at once, when their symbols are known,
// with the bytes of Encoder::finish(0).
//
//   - Stream i holds tile i's part of every group; the first stream begins with the hyper latent,
//     whose element i has the index i mod hyper_tables.size and of which nothing is skipped.
//   - Words and escapes of all streams share two arrays. A stream's part is as large as its symbols
//     might need, fills from its end, and says where that left off.
//   - Headers are the host's affair: assemble_stream.

#pragma once

#include <cstdint>
#include <vector>

#include "common/tile_set.h"
#include "entropy/rans_cuda.h"
#include "entropy/rans_layout.h"

namespace groupedmixer::entropy {

// What a stream's symbols need, added up before they are coded.
struct RansCounts {
  unsigned long long cost;  // in units of 2^-kCostBits bits
  uint32_t escape_bytes;
  uint32_t escaped;  // symbols
};

struct RansEncodedStream {
  uint32_t states[kMaxLanes];
  uint32_t lanes;
  uint32_t coded, escaped;  // symbols, as Encoder counts them
  uint32_t num_words;
  uint32_t escape_bytes;
  uint64_t first_word, first_escape;  // in `words` and `escapes`
};

struct RansEncodeParams {
  TileSet set;       // of T tokens
  int32_t channels;  // C
  int32_t groups;    // G
  int32_t skip_below;
  DeviceTables tables;
  const int16_t* symbols;  // [G, T, C], 0 where they are skipped
  const uint8_t* indexes;  // [G, T, C], below tables.size where they belong to a tile
  int32_t hyper_count;     // 0: the first stream has none
  DeviceTables hyper_tables;
  const int16_t* hyper_symbols;  // [hyper_count]

  RansCounts* counts;          // [set.count]
  uint32_t* coded;             // [set.count, 1 + G], symbols of the hyper latent and of each group
  RansEncodedStream* streams;  // [set.count], the result
  uint16_t* words;             // [encode_capacity]
  uint8_t* escapes;            // [encode_capacity * kMaxEscapeBytes]
};

constexpr int64_t encode_capacity(const TileSet& set, int64_t channels, int64_t groups,
                                  int64_t hyper_count) {
  return hyper_count + groups * set.tokens * channels;
}

// All pointers are device pointers; enqueues on `stream`, a cudaStream_t. Throws
// std::invalid_argument for streams of 2^30 symbols or more, std::runtime_error if a launch fails.
void launch_rans_encode(const RansEncodeParams& params, void* stream);

// The bytes of a stream, from host copies of what it left.
std::vector<uint8_t> assemble_stream(const RansEncodedStream& encoded,
                                     const uint16_t* words,    // [num_words], from first_word
                                     const uint8_t* escapes);  // [escape_bytes], from first_escape

}  // namespace groupedmixer::entropy
