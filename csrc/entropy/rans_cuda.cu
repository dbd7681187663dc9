// SPDX-License-Identifier: MIT

#include "common/cuda_launch.h"
#include "entropy/rans_cuda.h"

namespace groupedmixer::entropy {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = ~0u;
constexpr int kWordBytes = 2;
constexpr int kMaxEscapeBytes = 3;

// The slot that a point falls into.
__device__ int find_slot(const DeviceTables& tables, const Table& table, uint32_t point) {
  int low = 0, high = table.num_values;  // the slot is one of low .. high
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (tables.encode_entries[table.first + middle].interval.start <= point) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Reads the next escaped value. One thread at a time calls it.
__device__ RansFault read_escape(const RansDecodeParams& p, const Table& table, uint32_t& escape,
                                 uint32_t end, int& value) {
  uint32_t folded = 0;
  for (int i = 0;; ++i) {
    if (i == kMaxEscapeBytes) return RansFault::kEscapeLong;
    if (escape == end) return RansFault::kEscapeCut;
    const uint32_t byte = p.data[escape++];
    folded |= (byte & 0x7f) << (7 * i);
    if (byte >= 0x80) continue;
    if (byte == 0 && i > 0) return RansFault::kEscapeForm;
    break;
  }
  const int distance = static_cast<int>(folded >> 1);
  value =
      (folded & 1) != 0 ? table.offset - 1 - distance : table.offset + table.num_values + distance;
  return value < -32768 || value > 32767 ? RansFault::kEscapeRange : RansFault::kNone;
}

// Symbols that are not skipped wait in a ring until there is one for every lane; the last round of
// a group may have less.
__global__ void __launch_bounds__(kWarp) rans_decode_kernel(RansDecodeParams p) {
  constexpr int kRing = 2 * kWarp;
  __shared__ uint32_t ring[kRing];  // positions
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned before = (1u << lane) - 1;
  RansCursor& cursor = *p.cursor;
  if (cursor.fault != RansFault::kNone) return;
  const int lanes = static_cast<int>(cursor.lanes);
  const uint32_t words_end = cursor.words_end, escapes_end = cursor.escapes_end;
  uint32_t state = lane < lanes ? cursor.states[lane] : kLowerBound;
  uint32_t word = cursor.word, escape = cursor.escape;
  RansFault fault = RansFault::kNone;

  // Of `active` threads, which are the first ones; the others follow for the warp's sake.
  const auto decode_round = [&](uint32_t position, int active_lanes) {
    const bool active = lane < active_lanes;
    const uint32_t index = active ? p.indexes[position] : 0;
    if (__any_sync(kAll, active && index >= p.tables.size)) return RansFault::kIndex;
    const uint32_t point = state & (kTotal - 1);
    const uint32_t entry = p.tables.decode_entries[index * kTotal + point];
    const uint32_t x = entry_count(entry) * (state >> kPrecision) + entry_distance(entry);
    const bool low = active && x < kLowerBound;
    const unsigned low_lanes = __ballot_sync(kAll, low);
    const uint32_t taken = kWordBytes * static_cast<uint32_t>(__popc(low_lanes));
    if (words_end - word < taken) return RansFault::kWords;
    if (active) state = x;
    if (low) {
      const uint8_t* next = p.data + word + kWordBytes * __popc(low_lanes & before);
      state = x << 16 | next[1] << 8 | next[0];
    }
    word += taken;
    const Table& table = p.tables.tables[index];
    int value = table.near_base + static_cast<int>(entry_code(entry));
    bool escaped = false;
    if (active && entry_code(entry) == kFarCode) {
      const int slot = find_slot(p.tables, table, point);
      value = table.offset + slot;
      escaped = slot == table.num_values;
    }
    // Escapes are read in the order of the symbols.
    RansFault wrong = RansFault::kNone;
    for (unsigned left = __ballot_sync(kAll, escaped); left != 0; left &= left - 1) {
      const int reader = __ffs(static_cast<int>(left)) - 1;
      if (lane == reader) wrong = read_escape(p, table, escape, escapes_end, value);
      wrong = static_cast<RansFault>(__shfl_sync(kAll, static_cast<uint32_t>(wrong), reader));
      escape = __shfl_sync(kAll, escape, reader);
      if (wrong != RansFault::kNone) return wrong;
    }
    if (active) p.symbols[position] = static_cast<int16_t>(value);
    return RansFault::kNone;
  };

  int waiting = 0, first = 0;  // in the ring
  for (int64_t begin = 0; begin < p.count && fault == RansFault::kNone; begin += kWarp) {
    const int64_t position = begin + lane;
    const bool exists = position < p.count;
    const bool coded = exists && p.indexes[position] >= p.skip_below;
    if (exists && !coded) p.symbols[position] = 0;
    const unsigned coded_lanes = __ballot_sync(kAll, coded);
    if (coded) {
      const int place = first + waiting + __popc(coded_lanes & before);
      ring[place % kRing] = static_cast<uint32_t>(position);
    }
    __syncwarp();
    waiting += __popc(coded_lanes);
    while (waiting >= lanes && fault == RansFault::kNone) {
      fault = decode_round(ring[(first + lane) % kRing], lanes);
      first = (first + lanes) % kRing;
      waiting -= lanes;
    }
    __syncwarp();  // the places that are free again are written next
  }
  if (waiting > 0 && fault == RansFault::kNone) {
    fault = decode_round(ring[(first + lane) % kRing], waiting);
  }
  if (lane < lanes) cursor.states[lane] = state;
  if (lane == 0) {
    cursor.word = word;
    cursor.escape = escape;
    cursor.fault = fault;
  }
}

}  // namespace

void launch_rans_decode(const RansDecodeParams& p, void* stream) {
  if (p.count == 0) return;
  launch("rans_decode_kernel", rans_decode_kernel, 1, kWarp, 0, stream, p);
}

}  // namespace groupedmixer::entropy
