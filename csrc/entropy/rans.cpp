// SPDX-License-Identifier: MIT

#include "entropy/rans.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/isa.h"
#include "entropy/rans_kernels.h"
#include "entropy/stream_error.h"
#include "entropy/varint.h"

namespace groupedmixer::entropy {

GROUPEDMIXER_DECLARE_VARIANTS(RansKernels, rans_kernels)

namespace {

constexpr int kWordBits = 16;
constexpr std::array<int, 5> kLaneCounts = {1, 4, 8, 16,
                                            32};  // by the code in a stream's first byte
static_assert(kLaneCounts.back() == kMaxLanes);

constexpr int kStateBytes = 4;
constexpr int kMaxSizeBytes = 5;  // of the escape section's length
constexpr uint64_t kMaxEscapes = std::numeric_limits<uint32_t>::max();  // bytes of that section
constexpr int kMaxEscapeBytes = 3;  // 2 * (32767 + 32768) + 1 < 2^21

// A state must be below count << kEncodeShift before its symbol is encoded, to stay below 2^32
// after.
constexpr int kEncodeShift = 32 - kPrecision;
static_assert((kLowerBound >> kPrecision) << kWordBits == 1u << kEncodeShift,
              "one word at most leaves or enters a state per symbol");

// x / count == x * kReciprocal[count] >> kReciprocalBits for every x < count << kEncodeShift:
// with r = ceil(2^44 / count) the error x * (r * count - 2^44) is below count^2 * 2^20 <= 2^44, and
// the product stays below 2^64. One shift for all counts keeps the loop free of a second table.
constexpr int kReciprocalBits = 2 * kPrecision + kEncodeShift;
static_assert(kReciprocalBits + kEncodeShift == 64);

constexpr std::array<uint64_t, kTotal> make_reciprocals() {
  std::array<uint64_t, kTotal> reciprocals{};
  for (uint64_t count = 1; count < kTotal; ++count) {
    reciprocals[count] = ((uint64_t{1} << kReciprocalBits) + count - 1) / count;
  }
  return reciprocals;
}

constexpr std::array<uint64_t, kTotal> kReciprocals = make_reciprocals();

uint32_t load_u16(const uint8_t* bytes) { return bytes[0] | uint32_t{bytes[1]} << 8; }
uint32_t load_u32(const uint8_t* bytes) { return load_u16(bytes) | load_u16(bytes + 2) << 16; }

void store_u16(uint32_t value, uint8_t* bytes) {
  bytes[0] = static_cast<uint8_t>(value);
  bytes[1] = static_cast<uint8_t>(value >> 8);
}
void store_u32(uint32_t value, uint8_t* bytes) {
  store_u16(value, bytes);
  store_u16(value >> 16, bytes + 2);
}

void check_skip_below(int64_t skip_below, const Tables& tables) {
  if (skip_below < 0 || skip_below > tables.size()) {
    throw std::invalid_argument("skip_below must be 0 .. " + std::to_string(tables.size()) +
                                " (the number of tables), got " + std::to_string(skip_below));
  }
}

[[noreturn]] void fail_index(int64_t index, int64_t position, const Tables& tables) {
  throw std::invalid_argument("indexes must be below " + std::to_string(tables.size()) +
                              " (the number of tables), got " + std::to_string(index) +
                              " at position " + std::to_string(position));
}

// The distance of a value outside the support, with its side in the lowest bit.
uint32_t fold_escape(int32_t value, const Table& table) {
  const int32_t last = table.offset + table.num_values - 1;
  return value > last ? 2u * static_cast<uint32_t>(value - last - 1)
                      : 2u * static_cast<uint32_t>(table.offset - 1 - value) + 1u;
}

// Escapes and far symbols that a kernel may note before it has to come back.
constexpr int64_t kNoted = 1024;

// Symbols that a kernel is given at once: it notes their positions in 32 bits. Whole rounds.
constexpr int64_t kMostAtOnce = int64_t{1} << 31;

const RansKernels& kernels() { return GROUPEDMIXER_PICK_VARIANT(rans_kernels); }

int64_t run_decode(DecodeRun& run, const uint8_t* indexes, int64_t count) {
  return kernels().decode_bytes(run, indexes, count);
}
int64_t run_decode(DecodeRun& run, const uint16_t* indexes, int64_t count) {
  return kernels().decode_words(run, indexes, count);
}
int64_t run_look_up(LookUpRun& run, const int16_t* symbols, const uint8_t* indexes, int64_t count) {
  return kernels().look_up_bytes(run, symbols, indexes, count);
}
int64_t run_look_up(LookUpRun& run, const int16_t* symbols, const uint16_t* indexes,
                    int64_t count) {
  return kernels().look_up_words(run, symbols, indexes, count);
}

// The symbols of a group that are not skipped.
template <typename Index>
struct Coded {
  UninitializedVector<Index> indexes;
  UninitializedVector<int16_t> symbols;  // none for a decoder
};

// Throws std::invalid_argument at the first index without a table and, where there are symbols, the
// first one that is skipped but not 0.
template <typename Index>
Coded<Index> without_skipped(const int16_t* symbols,  // [count], or null
                             const Index* indexes,    // [count]
                             int64_t count, const Tables& tables, int64_t skip_below) {
  Coded<Index> coded;
  coded.indexes.resize(static_cast<size_t>(count));
  if (symbols != nullptr) coded.symbols.resize(static_cast<size_t>(count));
  Index* index_out = coded.indexes.data();
  int64_t size = 0;
  uint32_t wrong = 0;  // of all symbols: what is skipped comes as often as not, so nothing branches
  const auto keep = [&](int64_t i) {
    const uint32_t index = indexes[i];
    const uint32_t is_coded = index >= static_cast<uint32_t>(skip_below);
    wrong |= index >= static_cast<uint32_t>(tables.size());
    index_out[size] = indexes[i];
    return is_coded;
  };
  if (symbols == nullptr) {
    for (int64_t i = 0; i < count; ++i) size += keep(i);
  } else {
    int16_t* symbol_out = coded.symbols.data();
    for (int64_t i = 0; i < count; ++i) {
      symbol_out[size] = symbols[i];
      const uint32_t is_coded = keep(i);
      wrong |= static_cast<uint16_t>(symbols[i]) & (is_coded - 1);
      size += is_coded;
    }
  }
  for (int64_t i = 0; wrong != 0 && i < count; ++i) {
    if (indexes[i] >= tables.size()) fail_index(indexes[i], i, tables);
    if (indexes[i] < skip_below && symbols != nullptr && symbols[i] != 0) {
      throw std::invalid_argument("symbols must be 0 where indexes < skip_below, got " +
                                  std::to_string(symbols[i]) + " at position " + std::to_string(i));
    }
  }
  coded.indexes.resize(static_cast<size_t>(size));
  if (symbols != nullptr) coded.symbols.resize(static_cast<size_t>(size));
  return coded;
}

}  // namespace

template <typename Index>
void Encoder::push(const int16_t* symbols, const Index* indexes, int64_t count,
                   const Tables& tables, int64_t skip_below) {
  check_skip_below(skip_below, tables);
  const size_t old_size = intervals_.size(), old_escapes = escapes_.size();
  const size_t old_escaped = num_escaped_;
  const uint64_t old_cost = cost_;
  group_ends_.push_back(old_size);
  try {
    if (skip_below == 0) {
      look_up(symbols, indexes, count, tables);
    } else {
      const Coded<Index> coded = without_skipped(symbols, indexes, count, tables, skip_below);
      look_up(coded.symbols.data(), coded.indexes.data(),
              static_cast<int64_t>(coded.indexes.size()), tables);
    }
    if (escapes_.size() > kMaxEscapes) {
      throw std::invalid_argument("symbols must leave the escapes below 2^32 bytes, got " +
                                  std::to_string(escapes_.size()));
    }
  } catch (...) {
    group_ends_.pop_back();
    intervals_.resize(old_size);
    escapes_.resize(old_escapes);
    num_escaped_ = old_escaped;
    cost_ = old_cost;
    throw;
  }
  group_ends_.back() = intervals_.size();
}

template <typename Index>
void Encoder::look_up(const int16_t* symbols, const Index* indexes, int64_t count,
                      const Tables& tables) {
  const size_t old_size = intervals_.size();
  intervals_.resize(old_size + static_cast<size_t>(count));
  Interval* out = intervals_.data() + old_size;
  int64_t done = 0;
  if (kernels().encode != nullptr) {
    uint32_t escaped[kNoted];
    int64_t size;
    do {
      LookUpRun run{tables.slot_ranges(),
                    tables.encode_entries(),
                    tables.size(),
                    out + done,
                    escaped,
                    kNoted,
                    0,
                    0};
      size = run_look_up(run, symbols + done, indexes + done, std::min(count - done, kMostAtOnce));
      for (int64_t i = 0; i < run.num_escaped; ++i) {
        const int64_t position = done + escaped[i];
        append_varint(fold_escape(symbols[position], tables.table(indexes[position])), escapes_);
      }
      num_escaped_ += static_cast<size_t>(run.num_escaped);
      cost_ += run.cost;
      done += size;
    } while (size > 0);
  }
  for (; done < count; ++done) {
    const int64_t index = indexes[done];
    if (index >= tables.size()) fail_index(index, done, tables);
    const Table& table = tables.table(index);
    // One unsigned comparison finds values on both sides of the support.
    uint32_t slot = static_cast<uint32_t>(symbols[done] - table.offset);
    if (slot >= static_cast<uint32_t>(table.num_values)) {
      slot = static_cast<uint32_t>(table.num_values);
      append_varint(fold_escape(symbols[done], table), escapes_);
      ++num_escaped_;
    }
    const EncodeEntry& entry = tables.encode_entries(table)[slot];
    out[done] = entry.interval;
    cost_ += entry.cost;
  }
}

template void Encoder::push(const int16_t*, const uint8_t*, int64_t, const Tables&, int64_t);
template void Encoder::push(const int16_t*, const uint16_t*, int64_t, const Tables&, int64_t);

double Encoder::estimated_bits() const {
  return static_cast<double>(cost_) / (1 << kCostBits) + 8.0 * static_cast<double>(escapes_.size());
}

// The flush of a lane is kStateBytes. Integers throughout: the choice is part of the bytes.
int Encoder::choose_lanes() const {
  const uint64_t payload = cost_ + (uint64_t{8} * escapes_.size() << kCostBits);
  int chosen = kLaneCounts.front();
  for (const int lanes : kLaneCounts) {
    const uint64_t flush = uint64_t{8} * kStateBytes * static_cast<uint64_t>(lanes) << kCostBits;
    if (flush * 10000 <= payload * 75) chosen = lanes;  // 0.75 %
  }
  return chosen;
}

std::vector<uint8_t> Encoder::finish(int lanes) const {
  if (lanes == 0) lanes = choose_lanes();
  const auto lane_code = std::find(kLaneCounts.begin(), kLaneCounts.end(), lanes);
  if (lane_code == kLaneCounts.end()) {
    throw std::invalid_argument("lanes must be 0 (chosen), 1, 4, 8, 16 or 32, got " +
                                std::to_string(lanes));
  }
  std::vector<uint8_t> header = {static_cast<uint8_t>(lane_code - kLaneCounts.begin())};
  append_varint(escapes_.size(), header);

  const size_t state_bytes = static_cast<size_t>(lanes) * kStateBytes;
  UninitializedVector<uint8_t> buffer(header.size() + state_bytes + 2 * intervals_.size() +
                                      escapes_.size());
  uint8_t* const end = buffer.data() + buffer.size();
  uint8_t* cursor = end - escapes_.size();
  std::copy(escapes_.begin(), escapes_.end(), cursor);

  std::array<uint32_t, kMaxLanes> states;
  states.fill(kLowerBound);
  for (size_t group = group_ends_.size(); group-- > 0;) {
    const size_t begin = group == 0 ? 0 : group_ends_[group - 1];
    encode(intervals_.data() + begin, group_ends_[group] - begin, states.data(), lanes, cursor);
  }

  cursor -= state_bytes;
  for (int lane = 0; lane < lanes; ++lane) store_u32(states[lane], cursor + kStateBytes * lane);
  cursor -= header.size();
  std::copy(header.begin(), header.end(), cursor);
  return {cursor, end};
}

// A group, last symbol first: what is left of a round, then the whole rounds.
void Encoder::encode(const Interval* intervals, size_t count, uint32_t* states, int lanes,
                     uint8_t*& cursor) const {
  const size_t lane_mask = static_cast<size_t>(lanes) - 1;
  const bool vectors = kernels().encode != nullptr && lanes % kStates == 0;
  const size_t whole_rounds = vectors ? count & ~lane_mask : 0;
  for (size_t i = count; i-- > whole_rounds;) {
    const uint32_t start = intervals[i].start;
    const uint32_t share = intervals[i].count;
    uint32_t& state = states[i & lane_mask];
    uint32_t x = state;
    if (x >= share << kEncodeShift) {
      cursor -= 2;
      store_u16(x, cursor);
      x >>= kWordBits;
    }
    const uint32_t quotient = static_cast<uint32_t>(x * kReciprocals[share] >> kReciprocalBits);
    state = (quotient << kPrecision) + (x - quotient * share) + start;
  }
  if (whole_rounds > 0) {
    EncodeRun run{states, lanes, cursor};
    kernels().encode(run, intervals, static_cast<int64_t>(whole_rounds));
    cursor = run.cursor;
  }
}

Decoder::Decoder(const uint8_t* data, size_t size) : end_(data + size) {
  if (size == 0) throw StreamError("empty");
  const uint8_t* cursor = data;
  const uint8_t lane_code = *cursor++;
  if (lane_code >= kLaneCounts.size()) {
    throw StreamError("the lane code must be 0 .. 4, got " + std::to_string(lane_code));
  }
  lanes_ = kLaneCounts[lane_code];
  const uint64_t escape_bytes = read_varint(cursor, end_, kMaxSizeBytes, "the escape length");
  if (escape_bytes > kMaxEscapes) {
    throw StreamError("the escape length must be below 2^32, got " + std::to_string(escape_bytes));
  }
  const uint64_t state_bytes = static_cast<uint64_t>(lanes_) * kStateBytes;
  const uint64_t remaining = static_cast<uint64_t>(end_ - cursor);
  if (remaining < state_bytes + escape_bytes) {
    throw StreamError("must hold " + std::to_string(state_bytes) + " bytes of states and " +
                      std::to_string(escape_bytes) + " of escapes, got " +
                      std::to_string(remaining));
  }
  if ((remaining - state_bytes - escape_bytes) % 2 != 0) {
    throw StreamError("the section of 16-bit words has an odd number of bytes");
  }
  for (int lane = 0; lane < lanes_; ++lane) {
    states_[lane] = load_u32(cursor);
    if (states_[lane] < kLowerBound) {
      throw StreamError("states must be at least 65536, got " + std::to_string(states_[lane]) +
                        " in lane " + std::to_string(lane));
    }
    cursor += kStateBytes;
  }
  word_ = cursor;
  words_end_ = end_ - escape_bytes;
  escape_ = words_end_;
}

void Decoder::require_ready() const {
  if (status_ == Status::kFailed) {
    throw StreamError("the decoder is unusable after an earlier error");
  }
  if (status_ == Status::kFinished) throw StreamError("the decoder has been finished");
}

int16_t Decoder::read_escape(const Table& table) {
  const uint64_t folded = read_varint(escape_, end_, kMaxEscapeBytes, "an escaped value");
  const int32_t distance = static_cast<int32_t>(folded >> 1);
  const int32_t value =
      (folded & 1) != 0 ? table.offset - 1 - distance : table.offset + table.num_values + distance;
  if (value < std::numeric_limits<int16_t>::min() || value > std::numeric_limits<int16_t>::max()) {
    throw StreamError("an escaped value must lie in int16, got " + std::to_string(value));
  }
  return static_cast<int16_t>(value);
}

template <typename Index>
void Decoder::pop(const Index* indexes, int64_t count, const Tables& tables, int64_t skip_below,
                  int16_t* symbols) {
  require_ready();
  status_ = Status::kFailed;  // until the end is reached
  check_skip_below(skip_below, tables);
  if (skip_below == 0) {
    decode(indexes, count, tables, symbols);
  } else {
    Coded<Index> coded = without_skipped(nullptr, indexes, count, tables, skip_below);
    coded.symbols.resize(coded.indexes.size() + 1);  // the loop below reads one behind the last
    coded.symbols.back() = 0;
    decode(coded.indexes.data(), static_cast<int64_t>(coded.indexes.size()), tables,
           coded.symbols.data());
    const int16_t* next = coded.symbols.data();
    for (int64_t i = 0; i < count; ++i) {
      const int is_coded = indexes[i] >= skip_below;
      symbols[i] = static_cast<int16_t>(*next & -is_coded);
      next += is_coded;
    }
  }
  status_ = Status::kReady;
}

template <typename Index>
void Decoder::decode(const Index* indexes, int64_t count, const Tables& tables, int16_t* symbols) {
  const auto far_value = [&](int64_t index, uint32_t point) {
    const Table& table = tables.table(index);
    const int32_t slot = tables.find_slot(table, point);
    return slot == table.num_values ? read_escape(table)
                                    : static_cast<int16_t>(table.offset + slot);
  };
  int64_t done = 0;
  if (kernels().encode != nullptr && lanes_ % kStates == 0) {
    FarSymbol far[kNoted];
    int64_t size;
    do {
      DecodeRun run{states_.data(),
                    lanes_,
                    word_,
                    words_end_,
                    tables.decode_entries(0),
                    tables.all(),
                    tables.size(),
                    symbols + done,
                    far,
                    kNoted,
                    0};
      size = run_decode(run, indexes + done, std::min(count - done, kMostAtOnce));
      word_ = run.word;
      for (int64_t i = 0; i < run.num_far; ++i) {
        const int64_t position = done + far[i].position;
        symbols[position] = far_value(indexes[position], far[i].point);
      }
      done += size;
    } while (size > 0);
  }
  const uint32_t lane_mask = static_cast<uint32_t>(lanes_) - 1;
  uint32_t lane = 0;
  for (; done < count; ++done) {
    const int64_t index = indexes[done];
    if (index >= tables.size()) fail_index(index, done, tables);
    uint32_t x = states_[lane];
    const uint32_t point = x & (kTotal - 1);
    const uint32_t entry = tables.decode_entries(index)[point];
    // Stays within [16, 2^32): the state was at least kLowerBound, and counts are below kTotal.
    x = entry_count(entry) * (x >> kPrecision) + entry_distance(entry);
    if (x < kLowerBound) {
      if (word_ == words_end_) throw StreamError("ends before its last symbol");
      x = x << kWordBits | load_u16(word_);
      word_ += 2;
    }
    states_[lane] = x;
    lane = (lane + 1) & lane_mask;
    symbols[done] = entry_code(entry) == kFarCode
                        ? far_value(index, point)
                        : static_cast<int16_t>(tables.table(index).near_base +
                                               static_cast<int32_t>(entry_code(entry)));
  }
}

template void Decoder::pop(const uint8_t*, int64_t, const Tables&, int64_t, int16_t*);
template void Decoder::pop(const uint16_t*, int64_t, const Tables&, int64_t, int16_t*);

void Decoder::finish() {
  require_ready();
  status_ = Status::kFailed;
  if (word_ != words_end_) {
    throw StreamError(std::to_string(words_end_ - word_) + " bytes of words are left over");
  }
  if (escape_ != end_) {
    throw StreamError(std::to_string(end_ - escape_) + " bytes of escapes are left over");
  }
  for (int lane = 0; lane < lanes_; ++lane) {
    if (states_[lane] != kLowerBound) {
      throw StreamError("every state must end at 65536, got " + std::to_string(states_[lane]) +
                        " in lane " + std::to_string(lane));
    }
  }
  status_ = Status::kFinished;
}

}  // namespace groupedmixer::entropy
