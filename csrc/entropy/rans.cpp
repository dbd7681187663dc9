// SPDX-License-Identifier: MIT

#include "entropy/rans.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/isa.h"
#include "entropy/rans_kernels.h"
#include "entropy/rans_layout.h"
#include "entropy/stream_error.h"
#include "entropy/varint.h"

namespace groupedmixer::entropy {

GROUPEDMIXER_DECLARE_VARIANTS(RansKernels, rans_kernels)

namespace {

constexpr int kMaxSizeBytes = 5;  // of the escape section's length
constexpr int kMaxHeaderBytes = 1 + kMaxSizeBytes + kStateBytes * kMaxLanes;
constexpr uint64_t kMaxEscapes = std::numeric_limits<uint32_t>::max();  // bytes of that section

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

StreamHeader parse_header(const uint8_t* data, size_t size) {
  if (size == 0) throw StreamError("empty");
  const uint8_t* cursor = data;
  const uint8_t* const end = data + size;
  const uint8_t lane_code = *cursor++;
  if (lane_code >= kLaneCodes) {
    throw StreamError("the lane code must be 0 .. 4, got " + std::to_string(lane_code));
  }
  StreamHeader header{};
  header.lanes = lanes_of_code(lane_code);
  const uint64_t escape_bytes = read_varint(cursor, end, kMaxSizeBytes, "the escape length");
  if (escape_bytes > kMaxEscapes) {
    throw StreamError("the escape length must be below 2^32, got " + std::to_string(escape_bytes));
  }
  const uint64_t state_bytes = static_cast<uint64_t>(header.lanes) * kStateBytes;
  const uint64_t remaining = static_cast<uint64_t>(end - cursor);
  if (remaining < state_bytes + escape_bytes) {
    throw StreamError("must hold " + std::to_string(state_bytes) + " bytes of states and " +
                      std::to_string(escape_bytes) + " of escapes, got " +
                      std::to_string(remaining));
  }
  if ((remaining - state_bytes - escape_bytes) % kWordBytes != 0) {
    throw StreamError("the section of 16-bit words has an odd number of bytes");
  }
  for (int lane = 0; lane < header.lanes; ++lane) {
    header.states[lane] = load_u32(cursor);
    if (header.states[lane] < kLowerBound) {
      throw StreamError("states must be at least 65536, got " +
                        std::to_string(header.states[lane]) + " in lane " + std::to_string(lane));
    }
    cursor += kStateBytes;
  }
  header.words = static_cast<size_t>(cursor - data);
  header.escapes = size - static_cast<size_t>(escape_bytes);
  header.end = size;
  return header;
}

std::vector<uint8_t> make_header(int lanes, const uint32_t* states, uint64_t escape_bytes) {
  int lane_code = 0;
  while (lanes_of_code(lane_code) != lanes) ++lane_code;
  std::vector<uint8_t> header = {static_cast<uint8_t>(lane_code)};
  append_varint(escape_bytes, header);
  for (int lane = 0; lane < lanes; ++lane) {
    header.resize(header.size() + kStateBytes);
    store_u32(states[lane], header.data() + header.size() - kStateBytes);
  }
  return header;
}

void check_end(uint64_t word_bytes, uint64_t escape_bytes, int lanes, const uint32_t* states) {
  if (word_bytes != 0) {
    throw StreamError(std::to_string(word_bytes) + " bytes of words are left over");
  }
  if (escape_bytes != 0) {
    throw StreamError(std::to_string(escape_bytes) + " bytes of escapes are left over");
  }
  for (int lane = 0; lane < lanes; ++lane) {
    if (states[lane] != kLowerBound) {
      throw StreamError("every state must end at 65536, got " + std::to_string(states[lane]) +
                        " in lane " + std::to_string(lane));
    }
  }
}

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

std::vector<uint8_t> Encoder::finish(int lanes) const {
  if (lanes == 0) lanes = choose_lanes(cost_, escapes_.size());
  if (lanes != 1 && lanes != 4 && lanes != 8 && lanes != 16 && lanes != 32) {
    throw std::invalid_argument("lanes must be 0 (chosen), 1, 4, 8, 16 or 32, got " +
                                std::to_string(lanes));
  }
  UninitializedVector<uint8_t> buffer(kMaxHeaderBytes + kWordBytes * intervals_.size() +
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

  const std::vector<uint8_t> header = make_header(lanes, states.data(), escapes_.size());
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
  const StreamHeader header = parse_header(data, size);
  lanes_ = header.lanes;
  states_ = header.states;
  word_ = data + header.words;
  words_end_ = data + header.escapes;
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
  const int32_t value = unfold_escape(static_cast<uint32_t>(folded), table);
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
  check_end(static_cast<uint64_t>(words_end_ - word_), static_cast<uint64_t>(end_ - escape_),
            lanes_, states_.data());
  status_ = Status::kFinished;
}

}  // namespace groupedmixer::entropy
