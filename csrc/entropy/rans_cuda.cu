// SPDX-License-Identifier: MIT
//
// What a round waits for, one after the other: a table's entry at a point that the states give, two
// multiplications, the ballot that says who takes a word, the shuffle that brings it. All else is
// kept off that chain: words are loaded rounds ahead, and elements are listed and results written
// by other warps (coded_list.h).

#include <stdexcept>
#include <string>

#include "common/cuda_launch.h"
#include "entropy/coded_list.h"
#include "entropy/rans_cuda.h"
#include "entropy/rans_layout.h"
#include "entropy/stream_error.h"

namespace groupedmixer::entropy {
namespace {

constexpr int kDecodingWarp = 0, kListingWarp = 1, kFirstWritingWarp = 2, kWritingWarps = 8;
constexpr int kThreads = (kFirstWritingWarp + kWritingWarps) * kWarp;

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
__device__ RansFault read_escape(const uint8_t* data, const Table& table, uint32_t& escape,
                                 uint32_t end, int& value) {
  uint32_t folded = 0;
  for (int i = 0;; ++i) {
    if (i == kMaxEscapeBytes) return RansFault::kEscapeLong;
    if (escape == end) return RansFault::kEscapeCut;
    const uint32_t byte = data[escape++];
    folded |= (byte & 0x7f) << (7 * i);
    if (byte >= 0x80) continue;
    if (byte == 0 && i > 0) return RansFault::kEscapeForm;
    break;
  }
  value = unfold_escape(folded, table);
  return value < -32768 || value > 32767 ? RansFault::kEscapeRange : RansFault::kNone;
}

// The words that a warp reads next: two of the next 64 in each thread, and the 32 behind them on
// their way.
class Words {
 public:
  __device__ Words(const uint8_t* data, uint32_t word, uint32_t end)
      : data_(data), word_(word), end_(end) {
    next_ = word + kWordBytes * (threadIdx.x % kWarp);
    load();
    pair_ = coming();
    load();
    pair_ |= coming() << kWordBits;
    load();
  }

  __device__ uint32_t word() const { return word_; }
  __device__ int left() const { return static_cast<int>((end_ - word_) / kWordBytes); }

  // The word behind `ahead` others, 0 .. 31. To be called by the whole warp.
  __device__ uint32_t peek(int ahead) const {
    const int place = gone_ + ahead;
    const uint32_t pair = __shfl_sync(kAllLanes, pair_, place & (kWarp - 1));
    return place < kWarp ? pair & 0xffffu : pair >> kWordBits;
  }

  // 0 .. 32 words are read.
  __device__ void take(int count) {
    word_ += static_cast<uint32_t>(kWordBytes * count);
    gone_ += count;
    if (gone_ < kWarp) return;
    gone_ -= kWarp;
    pair_ = pair_ >> kWordBits | coming() << kWordBits;
    load();
  }

 private:
  // The bytes stay apart until they are needed: to put them together is to wait for them.
  __device__ void load() {
    const uint32_t at = next_;
    next_ += kWordBytes * kWarp;
    low_ = at < end_ ? data_[at] : 0;
    high_ = at < end_ ? data_[at + 1] : 0;
  }
  __device__ uint32_t coming() const { return low_ | high_ << 8; }

  const uint8_t* data_;
  uint32_t word_, end_;
  uint32_t next_;        // of this thread to load
  uint32_t pair_;        // words threadIdx.x and threadIdx.x + 32 of the 64
  uint32_t low_, high_;  // bytes of word threadIdx.x of the following ones
  int gone_ = 0;         // of the first 32
};

// A stream's decoder in the registers of a warp.
class Decoding {
 public:
  __device__ Decoding(const uint8_t* data, const DeviceTables& tables, RansCursor& cursor)
      : data_(data),
        tables_(tables),
        cursor_(cursor),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        lanes_(static_cast<int>(cursor.lanes)),
        state_(lane_ < lanes_ ? cursor.states[lane_] : kLowerBound),
        words_(data, cursor.word, cursor.words_end),
        escape_(cursor.escape),
        escapes_end_(cursor.escapes_end) {}

  // Decodes what is listed of a chunk. A chunk begins in the round in which the one before ended.
  __device__ void decode(const uint32_t* list,  // [listed], shared
                         int listed,
                         int16_t* values) {  // [kChunk], shared
    if (fault_ != RansFault::kNone) return;
    int place = lane_ - first_lane_;
    uint32_t coded = place >= 0 && place < listed ? list[place] : 0;
    for (int begin = -first_lane_; begin < listed; begin += lanes_) {
      const bool active = lane_ < lanes_ && place >= 0 && place < listed;
      place += lanes_;
      const uint32_t next = place < listed ? list[place] : 0;
      fault_ = decode_round(coded, active, values);
      if (fault_ != RansFault::kNone) return;
      coded = next;
    }
    first_lane_ = (first_lane_ + listed) % lanes_;
  }

  __device__ void fail(RansFault fault) {
    if (fault_ == RansFault::kNone) fault_ = fault;
  }

  __device__ void save() const {
    if (lane_ < lanes_) cursor_.states[lane_] = state_;
    if (lane_ != 0) return;
    cursor_.word = words_.word();
    cursor_.escape = escape_;
    cursor_.fault = fault_;
    cursor_.escaped_value = escaped_value_;
  }

 private:
  // Of the threads that are active; the others follow for the warp's sake.
  __device__ RansFault decode_round(uint32_t coded, bool active, int16_t* values) {
    const uint32_t index = coded_index(coded), point = state_ & (kTotal - 1);
    const uint32_t entry = tables_.decode_entries[index * kTotal + point];
    const Table& table = tables_.tables[index];
    int value = table.near_base + static_cast<int>(entry_code(entry));
    const uint32_t x = entry_count(entry) * (state_ >> kPrecision) + entry_distance(entry);
    const bool low = active && x < kLowerBound;
    const uint32_t low_lanes = __ballot_sync(kAllLanes, low);
    const uint32_t before = (1u << lane_) - 1;
    const uint32_t word = words_.peek(__popc(low_lanes & before) % kWarp);
    const int taken = __popc(low_lanes);
    const bool cut = taken > words_.left();
    // What comes before the missing word is decoded, as it may be wrong in another way.
    if (cut) active = active && __popc(low_lanes & (before << 1 | 1)) <= words_.left();
    bool escaped = false;
    if (active && entry_code(entry) == kFarCode) {
      const int slot = find_slot(tables_, table, point);
      value = table.offset + slot;
      escaped = slot == table.num_values;
    }
    if (active) state_ = low ? x << kWordBits | word : x;
    if (!cut) words_.take(taken);
    // Escapes are read in the order of the symbols.
    for (uint32_t left = __ballot_sync(kAllLanes, escaped); left != 0; left &= left - 1) {
      const int reader = __ffs(static_cast<int>(left)) - 1;
      RansFault wrong = RansFault::kNone;
      if (lane_ == reader) wrong = read_escape(data_, table, escape_, escapes_end_, value);
      wrong = static_cast<RansFault>(__shfl_sync(kAllLanes, static_cast<uint32_t>(wrong), reader));
      escape_ = __shfl_sync(kAllLanes, escape_, reader);
      escaped_value_ = __shfl_sync(kAllLanes, value, reader);
      if (wrong != RansFault::kNone) return wrong;
    }
    if (active) values[coded_position(coded)] = static_cast<int16_t>(value);
    return cut ? RansFault::kWords : RansFault::kNone;
  }

  const uint8_t* data_;
  const DeviceTables& tables_;
  RansCursor& cursor_;
  int lane_, lanes_;
  int first_lane_ = 0;  // of the next symbol
  uint32_t state_;
  Words words_;
  uint32_t escape_, escapes_end_;
  int escaped_value_ = 0;  // the last one
  RansFault fault_ = RansFault::kNone;
};

// A `Group` knows its elements: `count` of them, and
//   uint32_t index(int position) const;
//   void put(int position, int value) const;
template <typename Group>
__device__ void decode_group(const Group& group, const uint8_t* data, const DeviceTables& tables,
                             uint32_t skip_below, RansCursor& cursor) {
  __shared__ uint32_t lists[2][kChunk];
  __shared__ int listed[2];
  __shared__ bool all_indexed[2];
  __shared__ int16_t values[3][kChunk];
  if (cursor.fault != RansFault::kNone) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int chunks = (group.count + kChunk - 1) / kChunk;
  const auto size_of = [&](int chunk) { return min(kChunk, group.count - chunk * kChunk); };

  Decoding decoding(data, tables, cursor);
  for (int step = 0; step < chunks + 2; ++step) {
    if (warp == kListingWarp && step < chunks) {
      const int chunk = step, slot = chunk % 2;
      bool has_table = true;
      const auto index_of = [&](int position) {
        values[chunk % 3][position] = 0;
        const uint32_t index = group.index(chunk * kChunk + position);
        has_table = has_table && index < tables.size;
        return index;
      };
      const int size = list_coded(index_of, size_of(chunk), skip_below, lists[slot]);
      has_table = __all_sync(kAllLanes, has_table) != 0;
      if (lane == 0) listed[slot] = size;
      if (lane == 0) all_indexed[slot] = has_table;
    }
    if (warp == kDecodingWarp && step >= 1 && step <= chunks) {
      const int chunk = step - 1, slot = chunk % 2;
      if (!all_indexed[slot]) decoding.fail(RansFault::kIndex);
      decoding.decode(lists[slot], listed[slot], values[chunk % 3]);
    }
    if (warp >= kFirstWritingWarp && step >= 2) {
      const int chunk = step - 2, size = size_of(chunk);
#pragma unroll
      for (int row = 0; row < kChunk; row += kWritingWarps * kWarp) {
        const int i = row + static_cast<int>(threadIdx.x) - kFirstWritingWarp * kWarp;
        if (i < size) group.put(chunk * kChunk + i, values[chunk % 3][i]);
      }
    }
    __syncthreads();
  }
  if (warp == kDecodingWarp) decoding.save();
}

struct TileGroup {
  int count;
  const uint8_t* indexes;
  const float* mean;
  float* y_hat;

  __device__ uint32_t index(int position) const { return indexes[position]; }
  __device__ void put(int position, int value) const {
    y_hat[position] = __fadd_rn(__int2float_rn(value), __ldg(mean + position));
  }
};

struct ChannelGroup {
  int count;
  uint32_t channels;
  int16_t* symbols;

  __device__ uint32_t index(int position) const {
    return static_cast<uint32_t>(position) % channels;
  }
  __device__ void put(int position, int value) const {
    symbols[position] = static_cast<int16_t>(value);
  }
};

__global__ void __launch_bounds__(kThreads, 1) rans_group_decode_kernel(RansGroupDecodeParams p) {
  const TileSpan& tile = p.set.tiles[blockIdx.x];
  const int64_t first = static_cast<int64_t>(tile.first) * p.channels;
  const TileGroup group = {tile.tokens() * p.channels, p.indexes + first, p.mean + first,
                           p.y_hat + first};
  decode_group(group, p.data, p.tables, static_cast<uint32_t>(p.skip_below), p.cursors[blockIdx.x]);
}

__global__ void __launch_bounds__(kThreads, 1)
    rans_channel_decode_kernel(RansChannelDecodeParams p) {
  decode_group(ChannelGroup{p.count, p.tables.size, p.symbols}, p.data, p.tables, 0, *p.cursor);
}

}  // namespace

void launch_rans_group_decode(const RansGroupDecodeParams& p, void* stream) {
  if (p.set.count == 0) return;
  launch("rans_group_decode_kernel", rans_group_decode_kernel,
         static_cast<unsigned int>(p.set.count), kThreads, 0, stream, p);
}

void launch_rans_channel_decode(const RansChannelDecodeParams& p, void* stream) {
  if (p.count == 0) return;
  launch("rans_channel_decode_kernel", rans_channel_decode_kernel, 1, kThreads, 0, stream, p);
}

RansCursor make_cursor(const StreamHeader& header, uint64_t offset) {
  if (offset > kMaxStreamData || header.end > kMaxStreamData - offset) {
    throw std::invalid_argument("streams must end within " + std::to_string(kMaxStreamData) +
                                " bytes, got one of " + std::to_string(header.end) + " bytes at " +
                                std::to_string(offset));
  }
  const auto at = [&](size_t place) { return static_cast<uint32_t>(offset + place); };
  RansCursor cursor{};
  for (int lane = 0; lane < header.lanes; ++lane) cursor.states[lane] = header.states[lane];
  cursor.lanes = static_cast<uint32_t>(header.lanes);
  cursor.word = at(header.words);
  cursor.words_end = cursor.escape = at(header.escapes);
  cursor.escapes_end = at(header.end);
  return cursor;
}

void check_fault(const RansCursor& cursor) {
  switch (cursor.fault) {
    case RansFault::kNone:
      return;
    case RansFault::kIndex:
      throw std::invalid_argument("indexes must be below the number of tables");
    case RansFault::kWords:
      throw StreamError("ends before its last symbol");
    case RansFault::kEscapeCut:
      throw StreamError("an escaped value is cut short");
    case RansFault::kEscapeForm:
      throw StreamError("an escaped value is not in shortest form");
    case RansFault::kEscapeLong:
      throw StreamError("an escaped value must take at most 3 bytes, got more");
    case RansFault::kEscapeRange:
      throw StreamError("an escaped value must lie in int16, got " +
                        std::to_string(cursor.escaped_value));
  }
}

void check_finished(const RansCursor& cursor) {
  check_fault(cursor);
  check_end(cursor.words_end - cursor.word, cursor.escapes_end - cursor.escape,
            static_cast<int>(cursor.lanes), cursor.states);
}

}  // namespace groupedmixer::entropy
