// SPDX-License-Identifier: MIT
//
// A stream is coded from its last symbol to its first, so chunks and rounds are taken backwards,
// and so are the words of a round: those of higher lanes come first. The state's chain in a round
// is a comparison, a shift and a division by multiplication; other warps look up what it is divided
// by.

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/cuda_launch.h"
#include "entropy/coded_list.h"
#include "entropy/rans_encode_cuda.h"

namespace groupedmixer::entropy {
namespace {

constexpr int kCodingWarp = 0, kListingWarp = 1, kFirstLookUpWarp = 2, kLookUpWarps = 8;
constexpr int kThreads = (kFirstLookUpWarp + kLookUpWarps) * kWarp;
constexpr int kCountThreads = 256;
constexpr int64_t kMostSymbols = int64_t{1} << 30;  // of a stream

constexpr int chunks_of(int count) { return (count + kChunk - 1) / kChunk; }

// A piece of a group.
struct Chunk {
  const int16_t* symbols;  // [count]
  const uint8_t* indexes;  // [count]; null: of the hyper latent
  int first;               // in its part of the group
  int count;
  int group;  // 0: the hyper latent
  bool last;  // of its group
};

// A stream's symbols as chunks, in coding order.
class Chunks {
 public:
  __device__ Chunks(const RansEncodeParams& p, int stream)
      : p_(p),
        hyper_count_(stream == 0 ? p.hyper_count : 0),
        first_(static_cast<int64_t>(p.set.tiles[stream].first) * p.channels),
        count_(p.set.tiles[stream].tokens() * p.channels) {}

  __device__ int size() const { return chunks_of(hyper_count_) + p_.groups * chunks_of(count_); }

  __device__ Chunk operator[](int number) const {
    int group = 0;
    const int16_t* symbols = p_.hyper_symbols;
    const uint8_t* indexes = nullptr;
    int count = hyper_count_;
    if (number >= chunks_of(hyper_count_)) {
      number -= chunks_of(hyper_count_);
      group = 1 + number / chunks_of(count_);
      number %= chunks_of(count_);
      const int64_t begin = static_cast<int64_t>(group - 1) * p_.set.tokens * p_.channels + first_;
      symbols = p_.symbols + begin;
      indexes = p_.indexes + begin;
      count = count_;
    }
    const int first = number * kChunk;
    const int size = min(kChunk, count - first);
    return {symbols + first, indexes == nullptr ? nullptr : indexes + first,
            first,           size,
            group,           first + size == count};
  }

  __device__ uint32_t index(const Chunk& chunk, int position) const {
    return chunk.indexes == nullptr
               ? static_cast<uint32_t>(chunk.first + position) % p_.hyper_tables.size
               : chunk.indexes[position];
  }
  __device__ uint32_t skip_below(const Chunk& chunk) const {
    return chunk.indexes == nullptr ? 0 : static_cast<uint32_t>(p_.skip_below);
  }
  __device__ const DeviceTables& tables(const Chunk& chunk) const {
    return chunk.indexes == nullptr ? p_.hyper_tables : p_.tables;
  }

 private:
  const RansEncodeParams& p_;
  int hyper_count_;
  int64_t first_;  // of the tile's elements in a group
  int count_;
};

struct Found {
  EncodeEntry entry;
  uint32_t escape;  // 0: the table has the symbol; else 1 + its distance, folded
};

__device__ Found look_up(const DeviceTables& tables, uint32_t index, int symbol) {
  const Table table = tables.tables[index];
  // One unsigned comparison finds values on both sides of the support.
  const uint32_t slot = static_cast<uint32_t>(symbol - table.offset);
  const uint32_t last = static_cast<uint32_t>(table.num_values);
  return {tables.encode_entries[table.first + min(slot, last)],
          slot < last ? 0 : 1 + fold_escape(symbol, table)};
}

__device__ uint32_t varint_size(uint32_t value) {
  return 1 + (value >= 1u << 7 ? 1 : 0) + (value >= 1u << 14 ? 1 : 0);
}

__device__ uint32_t sum_of_warp(uint32_t value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// A chunk of a stream a block. Costs are below 2^20, so those of a chunk fit in 32 bits.
__global__ void __launch_bounds__(kCountThreads) rans_count_kernel(RansEncodeParams p) {
  const int stream = static_cast<int>(blockIdx.y);
  const Chunks chunks(p, stream);
  if (static_cast<int>(blockIdx.x) >= chunks.size()) return;
  const Chunk chunk = chunks[static_cast<int>(blockIdx.x)];
  uint32_t cost = 0, coded = 0, escaped = 0, escape_bytes = 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kCountThreads) {
    const uint32_t index = chunks.index(chunk, i);
    if (index < chunks.skip_below(chunk)) continue;
    const Found found = look_up(chunks.tables(chunk), index, chunk.symbols[i]);
    cost += found.entry.cost;
    ++coded;
    if (found.escape == 0) continue;
    ++escaped;
    escape_bytes += varint_size(found.escape - 1);
  }
  __syncwarp();
  cost = sum_of_warp(cost);
  coded = sum_of_warp(coded);
  escaped = sum_of_warp(escaped);
  escape_bytes = sum_of_warp(escape_bytes);
  if (threadIdx.x % kWarp != 0 || coded == 0) return;
  RansCounts& counts = p.counts[stream];
  atomicAdd(&counts.cost, static_cast<unsigned long long>(cost));
  atomicAdd(&p.coded[stream * (1 + p.groups) + chunk.group], coded);
  if (escaped == 0) return;
  atomicAdd(&counts.escaped, escaped);
  atomicAdd(&counts.escape_bytes, escape_bytes);
}

// A coded symbol, as the coding warp needs it.
//   x: the interval's start, with its count above 16 bits   y, z: the reciprocal   w: Found::escape
using Prepared = uint4;

__device__ Prepared prepare(const DeviceTables& tables, uint32_t index, int symbol) {
  const Found found = look_up(tables, index, symbol);
  const Interval interval = found.entry.interval;
  const uint64_t reciprocal = tables.reciprocals[interval.count];
  return make_uint4(interval.start | static_cast<uint32_t>(interval.count) << 16,
                    static_cast<uint32_t>(reciprocal), static_cast<uint32_t>(reciprocal >> 32),
                    found.escape);
}

// x * reciprocal >> kReciprocalBits; the product has 64 bits.
__device__ uint32_t divide(uint32_t x, const Prepared& by) {
  return (__umulhi(x, by.y) + x * by.z) >> (kReciprocalBits - 32);
}

// A stream's encoder in the registers of a warp.
class Encoding {
 public:
  __device__ Encoding(int lanes, uint16_t* words_end, uint8_t* escapes_end)
      : lane_(static_cast<int>(threadIdx.x) % kWarp),
        lanes_(lanes),
        words_end_(words_end),
        escapes_end_(escapes_end) {}

  // Encodes the symbols of a chunk that are coded, of which the group has `before` ahead of them.
  __device__ void encode(const Prepared* prepared,  // [listed], shared
                         int listed, int before) {
    if (listed == 0) return;
    int place = ((before + listed - 1) & -lanes_) + lane_ - before;  // in the last round
    Prepared symbol = place >= 0 && place < listed ? prepared[place] : Prepared{};
    for (int begin = place - lane_; begin > -lanes_; begin -= lanes_) {
      const bool active = lane_ < lanes_ && place >= 0 && place < listed;
      place -= lanes_;
      const Prepared next = place >= 0 && place < listed ? prepared[place] : Prepared{};
      encode_round(symbol, active);
      symbol = next;
    }
  }

  __device__ void save(RansEncodedStream& out) const {
    if (lane_ < lanes_) out.states[lane_] = state_;
    if (lane_ != 0) return;
    out.lanes = static_cast<uint32_t>(lanes_);
    out.num_words = num_words_;
    out.escape_bytes = escape_bytes_;
  }

 private:
  __device__ void encode_round(const Prepared& symbol, bool active) {
    const uint32_t share = symbol.x >> 16, start = symbol.x & 0xffffu;
    const bool high = active && state_ >= share << kEncodeShift;
    const uint32_t high_lanes = __ballot_sync(kAllLanes, high);
    const uint32_t above = ~1u << lane_;
    if (high) {
      const uint32_t from_end = num_words_ + 1 + static_cast<uint32_t>(__popc(high_lanes & above));
      *(words_end_ - from_end) = static_cast<uint16_t>(state_);
    }
    num_words_ += static_cast<uint32_t>(__popc(high_lanes));
    const uint32_t x = high ? state_ >> kWordBits : state_;
    const uint32_t quotient = divide(x, symbol);
    if (active) state_ = (quotient << kPrecision) + (x - quotient * share) + start;
    const bool escaped = active && symbol.w != 0;
    if (__any_sync(kAllLanes, escaped)) write_escapes(symbol.w - 1, escaped);
  }

  // Of a round, the last one first.
  __device__ void write_escapes(uint32_t folded, bool escaped) {
    const uint32_t size = escaped ? varint_size(folded) : 0;
    uint32_t from_end = size;  // of this one and those of higher lanes
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const uint32_t more = __shfl_down_sync(kAllLanes, from_end, distance);
      if (lane_ + distance < kWarp) from_end += more;
    }
    uint8_t* out = escapes_end_ - (escape_bytes_ + from_end);
    for (uint32_t i = 0; i < size; ++i) {
      const uint32_t more = i + 1 < size ? 0x80u : 0u;
      out[i] = static_cast<uint8_t>((folded >> (7 * i) & 0x7f) | more);
    }
    escape_bytes_ += __shfl_sync(kAllLanes, from_end, 0);
  }

  int lane_, lanes_;
  uint32_t state_ = kLowerBound;
  uint16_t* words_end_;
  uint8_t* escapes_end_;
  uint32_t num_words_ = 0, escape_bytes_ = 0;
};

__global__ void __launch_bounds__(kThreads, 1) rans_encode_kernel(RansEncodeParams p) {
  __shared__ uint32_t lists[2][kChunk];
  __shared__ int listed[3];
  __shared__ Prepared prepared[2][kChunk];
  const int stream = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Chunks chunks(p, stream);
  const int size = chunks.size();

  const RansCounts counts = p.counts[stream];
  const int64_t group_size = static_cast<int64_t>(p.groups) * p.channels;
  const TileSpan& tile = p.set.tiles[stream];
  const int64_t end = p.hyper_count + group_size * (tile.first + tile.tokens());
  Encoding encoding(choose_lanes(counts.cost, counts.escape_bytes), p.words + end,
                    p.escapes + end * kMaxEscapeBytes);
  const uint32_t* coded = p.coded + stream * (1 + p.groups);
  int before = 0;  // coded symbols of the group ahead of the chunk

  for (int step = 0; step < size + 2; ++step) {
    if (warp == kListingWarp && step < size) {
      const Chunk chunk = chunks[size - 1 - step];
      const auto index_of = [&](int position) { return chunks.index(chunk, position); };
      const int count =
          list_coded(index_of, chunk.count, chunks.skip_below(chunk), lists[step % 2]);
      if (threadIdx.x % kWarp == 0) listed[step % 3] = count;
    }
    if (warp >= kFirstLookUpWarp && step >= 1 && step <= size) {
      const int at = step - 1;
      const Chunk chunk = chunks[size - 1 - at];
      const DeviceTables& tables = chunks.tables(chunk);
#pragma unroll
      for (int row = 0; row < kChunk; row += kLookUpWarps * kWarp) {
        const int i = row + static_cast<int>(threadIdx.x) - kFirstLookUpWarp * kWarp;
        if (i >= listed[at % 3]) break;
        const uint32_t one = lists[at % 2][i];
        prepared[at % 2][i] = prepare(tables, coded_index(one), chunk.symbols[coded_position(one)]);
      }
    }
    if (warp == kCodingWarp && step >= 2) {
      const int at = step - 2;
      const Chunk chunk = chunks[size - 1 - at];
      if (chunk.last) before = static_cast<int>(coded[chunk.group]);
      before -= listed[at % 3];
      encoding.encode(prepared[at % 2], listed[at % 3], before);
    }
    __syncthreads();
  }
  if (warp != kCodingWarp) return;
  RansEncodedStream& out = p.streams[stream];
  encoding.save(out);
  if (threadIdx.x != 0) return;
  uint32_t all_coded = 0;
  for (int group = 0; group <= p.groups; ++group) all_coded += coded[group];
  out.coded = all_coded;
  out.escaped = counts.escaped;
  out.first_word = static_cast<uint64_t>(end) - out.num_words;
  out.first_escape = static_cast<uint64_t>(end) * kMaxEscapeBytes - out.escape_bytes;
}

}  // namespace

void launch_rans_encode(const RansEncodeParams& p, void* stream) {
  if (p.set.count == 0) return;
  int most_chunks = 0;
  for (int i = 0; i < p.set.count; ++i) {
    const int64_t hyper_count = i == 0 ? p.hyper_count : 0;
    const int64_t count = int64_t{p.set.tiles[i].tokens()} * p.channels;
    if (hyper_count + p.groups * count >= kMostSymbols) {
      throw std::invalid_argument("streams must have less than 2^30 symbols, got " +
                                  std::to_string(hyper_count + p.groups * count));
    }
    most_chunks = std::max(most_chunks, chunks_of(static_cast<int>(hyper_count)) +
                                            p.groups * chunks_of(static_cast<int>(count)));
  }
  const auto streams = static_cast<size_t>(p.set.count);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(p.counts, 0, streams * sizeof(RansCounts), cuda_stream),
             "launch_rans_encode");
  check_cuda(
      cudaMemsetAsync(p.coded, 0, streams * (1 + static_cast<size_t>(p.groups)) * sizeof(uint32_t),
                      cuda_stream),
      "launch_rans_encode");
  launch("rans_count_kernel", rans_count_kernel,
         dim3(static_cast<unsigned int>(most_chunks), static_cast<unsigned int>(p.set.count)),
         kCountThreads, 0, stream, p);
  launch("rans_encode_kernel", rans_encode_kernel, static_cast<unsigned int>(p.set.count), kThreads,
         0, stream, p);
}

std::vector<uint8_t> assemble_stream(const RansEncodedStream& encoded, const uint16_t* words,
                                     const uint8_t* escapes) {
  std::vector<uint8_t> stream =
      make_header(static_cast<int>(encoded.lanes), encoded.states, encoded.escape_bytes);
  stream.reserve(stream.size() + size_t{kWordBytes} * encoded.num_words + encoded.escape_bytes);
  for (uint32_t i = 0; i < encoded.num_words; ++i) {
    stream.push_back(static_cast<uint8_t>(words[i]));
    stream.push_back(static_cast<uint8_t>(words[i] >> 8));
  }
  stream.insert(stream.end(), escapes, escapes + encoded.escape_bytes);
  return stream;
}

}  // namespace groupedmixer::entropy
