// SPDX-License-Identifier: MIT

#include "entropy/compressai_rans.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "entropy/stream_error.h"

namespace groupedmixer::entropy {
namespace {

constexpr uint32_t kPoints = 1u << kCompressaiPrecision;  // of the probability line
constexpr uint32_t kPointMask = kPoints - 1;
constexpr int kBucketShift = kCompressaiPrecision - kCompressaiBucketBits;

constexpr int kWordBytes = 4;
constexpr int kWordBits = 32;
constexpr int kStateWords = 2;
constexpr int kStateBits = 63;
static_assert(kCompressaiLowerBound << kWordBits == uint64_t{1} << kStateBits,
              "one word at most leaves or enters a state per symbol");

// A state must be below count << kEncodeShift before its symbol is encoded.
constexpr int kEncodeShift = kStateBits - kCompressaiPrecision;

constexpr int kDigitBits = 4;
constexpr uint32_t kMaxDigits = 8;  // folded values are below 2^31
constexpr int64_t kMaxDistance = int64_t{1} << 30;
constexpr size_t kMaxWordsPerSymbol = 2 + kMaxDigits;  // slot, number of digits, digits

constexpr int32_t kMaxSize = 1 << 16;
constexpr int32_t kMaxOffset = 1 << 30;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

std::string text(int64_t number) { return std::to_string(number); }

uint32_t load_u32(const uint8_t* bytes) {
  return bytes[0] | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16 | uint32_t{bytes[3]} << 24;
}

void store_u32(uint32_t value, uint8_t* bytes) {
  bytes[0] = static_cast<uint8_t>(value);
  bytes[1] = static_cast<uint8_t>(value >> 8);
  bytes[2] = static_cast<uint8_t>(value >> 16);
  bytes[3] = static_cast<uint8_t>(value >> 24);
}

uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// With s = ceil(log2(count)) and reciprocal = ceil(2^(63 + s) / count), the product exceeds
// 2^(63 + s) * state / count by less than state <= 2^63 <= 2^(63 + s) / count, which is too little
// to reach the next integer after the shift. The quotient by 1 would need a reciprocal of 2^64;
// 2^64 - 1 gives state - 1 instead, and the bias makes up for it.
CompressaiEncodeEntry make_entry(uint32_t start, uint32_t count) {
  if (count == 0) return {0, 0, 0, 0};
  if (count == 1) return {~uint64_t{0}, start + kPoints - 1, 1, 0};
  int bits = 0;
  while (1u << bits < count) ++bits;
  const unsigned __int128 power = static_cast<unsigned __int128>(1) << (kStateBits + bits);
  return {static_cast<uint64_t>((power + count - 1) / count), start, static_cast<uint16_t>(count),
          static_cast<uint16_t>(bits - 1)};
}

void check_table(int64_t index, const int32_t* cdf, int32_t size) {
  const std::string which = "of table " + text(index);
  if (cdf[0] != 0 || cdf[size - 1] != static_cast<int32_t>(kPoints)) {
    fail("cdfs " + which + " must run from 0 to " + text(kPoints) + ", got " + text(cdf[0]) +
         " to " + text(cdf[size - 1]));
  }
  for (int32_t i = 1; i < size; ++i) {
    const int64_t step = int64_t{cdf[i]} - cdf[i - 1];
    if (step < 0 || step >= int64_t{kPoints}) {
      fail("cdfs " + which + " must rise by 0 .. " + text(kPoints - 1) + " at a time, got " +
           text(step) + " at element " + text(i));
    }
  }
}

[[noreturn]] void fail_index(int64_t index, int64_t position, const CompressaiTables& tables) {
  fail("indexes must be 0 .. " + text(tables.size() - 1) + ", got " + text(index) +
       " at position " + text(position));
}

[[noreturn]] void fail_share(int64_t symbol, int64_t index, int64_t position) {
  fail("symbols must have a share of their table, but cdfs of table " + text(index) +
       " does not rise at " + text(symbol) + " (position " + text(position) + ")");
}

template <typename Index>
uint64_t as_unsigned(Index index) {
  return static_cast<uint64_t>(static_cast<int64_t>(index));  // negative ones become huge
}

}  // namespace

CompressaiTables::CompressaiTables(const int32_t* cdfs, const int32_t* sizes,
                                   const int32_t* offsets, int64_t num_tables, int64_t row) {
  if (num_tables < 1) fail("cdfs must hold at least 1 table, got 0");
  const int32_t longest = static_cast<int32_t>(std::min<int64_t>(row, kMaxSize));
  size_t num_slots = 0;
  for (int64_t i = 0; i < num_tables; ++i) {
    if (sizes[i] < 2 || sizes[i] > longest) {
      fail("sizes must be 2 .. " + text(longest) + ", got " + text(sizes[i]) + " for table " +
           text(i));
    }
    if (offsets[i] < -kMaxOffset || offsets[i] > kMaxOffset) {
      fail("offsets must be within 2^30 of 0, got " + text(offsets[i]) + " for table " + text(i));
    }
    check_table(i, cdfs + i * row, sizes[i]);
    num_slots += static_cast<size_t>(sizes[i] - 1);
  }
  tables_.reserve(num_tables);
  encode_entries_.reserve(num_slots);
  slots_.reserve(num_slots);
  buckets_.reserve(static_cast<size_t>(num_tables) << kCompressaiBucketBits);
  for (int64_t i = 0; i < num_tables; ++i) append_table(cdfs + i * row, sizes[i], offsets[i]);
}

void CompressaiTables::append_table(const int32_t* cdf, int32_t size, int32_t offset) {
  const int32_t num_values = size - 2;
  tables_.push_back({offset, num_values, slots_.size()});
  uint32_t bucket = 0;
  for (int32_t slot = 0; slot <= num_values; ++slot) {
    const uint32_t start = static_cast<uint32_t>(cdf[slot]);
    const uint32_t end = static_cast<uint32_t>(cdf[slot + 1]);
    const CompressaiSlot entry = {static_cast<uint16_t>(start), static_cast<uint16_t>(end - start)};
    encode_entries_.push_back(make_entry(start, end - start));
    slots_.push_back(entry);
    for (; bucket << kBucketShift < end; ++bucket) {
      buckets_.push_back({entry.start, entry.count, static_cast<uint16_t>(slot),
                          static_cast<uint16_t>(slot == num_values)});
    }
  }
}

// Makes room for so many words more. New memory is not touched before it is needed.
void CompressaiEncoder::reserve(size_t words) {
  const size_t bytes = kWordBytes * words;
  if (cursor_ >= bytes) return;
  const size_t capacity = std::max(2 * capacity_, size() + bytes);
  std::unique_ptr<uint8_t[]> grown(new uint8_t[capacity]);
  const size_t cursor = capacity - size();
  std::copy(data(), data() + size(), grown.get() + cursor);
  buffer_ = std::move(grown);
  capacity_ = capacity;
  cursor_ = cursor;
}

void CompressaiEncoder::put_bits(uint32_t value, int bits) {
  if (state_ >= uint64_t{1} << (kStateBits - bits)) {
    cursor_ -= kWordBytes;
    store_u32(static_cast<uint32_t>(state_), buffer_.get() + cursor_);
    state_ >>= kWordBits;
  }
  state_ = state_ << bits | value;
}

// Writes a value outside the table and returns the escape's slot, which is still to be written: the
// decoder reads it first.
uint32_t CompressaiEncoder::escape(int64_t slot, const CompressaiTable& table, int64_t position) {
  const int64_t above = slot - table.num_values;
  if (above >= kMaxDistance || slot < -kMaxDistance) {
    fail("symbols must be closer than 2^30 to the values of their table, got " +
         text(slot + table.offset) + " at position " + text(position));
  }
  const uint32_t folded = static_cast<uint32_t>(slot < 0 ? -2 * slot - 1 : 2 * above);
  uint32_t digits = 0;
  while (digits < kMaxDigits && folded >> (kDigitBits * digits) != 0) ++digits;
  for (uint32_t i = digits; i-- > 0;) {
    put_bits(folded >> (kDigitBits * i) & ((1u << kDigitBits) - 1), kDigitBits);
  }
  put_bits(digits, kDigitBits);
  return static_cast<uint32_t>(table.num_values);
}

template <typename Index>
void CompressaiEncoder::prepend(const int32_t* symbols, const Index* indexes, int64_t count,
                                const CompressaiTables& tables) {
  const uint64_t num_tables = static_cast<uint64_t>(tables.size());
  reserve(static_cast<size_t>(count) + kMaxWordsPerSymbol);
  uint64_t state = state_;
  uint8_t* cursor = buffer_.get() + cursor_;
  for (int64_t i = count; i-- > 0;) {
    const uint64_t index = as_unsigned(indexes[i]);
    if (index >= num_tables) fail_index(indexes[i], i, tables);
    const CompressaiTable& table = tables.table(static_cast<int64_t>(index));
    const int64_t distance = int64_t{symbols[i]} - table.offset;
    uint64_t slot = static_cast<uint64_t>(distance);
    // One unsigned comparison finds values on both sides of the table's.
    if (slot >= static_cast<uint64_t>(table.num_values)) {
      cursor_ = static_cast<size_t>(cursor - buffer_.get());
      state_ = state;
      reserve(static_cast<size_t>(i) + kMaxWordsPerSymbol);
      slot = escape(distance, table, i);
      cursor = buffer_.get() + cursor_;
      state = state_;
    }
    const CompressaiEncodeEntry& entry = tables.encode_entries(table)[slot];
    if (state >= uint64_t{entry.count} << kEncodeShift) {
      if (entry.count == 0) fail_share(symbols[i], static_cast<int64_t>(index), i);
      cursor -= kWordBytes;
      store_u32(static_cast<uint32_t>(state), cursor);
      state >>= kWordBits;
    }
    const uint64_t quotient = multiply_high(state, entry.reciprocal) >> entry.shift;
    state += entry.bias + quotient * (kPoints - entry.count);
  }
  cursor_ = static_cast<size_t>(cursor - buffer_.get());
  state_ = state;
}

template void CompressaiEncoder::prepend(const int32_t*, const uint8_t*, int64_t,
                                         const CompressaiTables&);
template void CompressaiEncoder::prepend(const int32_t*, const int32_t*, int64_t,
                                         const CompressaiTables&);

void CompressaiEncoder::finish() {
  reserve(kStateWords);
  cursor_ -= kStateWords * kWordBytes;
  store_u32(static_cast<uint32_t>(state_), buffer_.get() + cursor_);
  store_u32(static_cast<uint32_t>(state_ >> kWordBits), buffer_.get() + cursor_ + kWordBytes);
}

CompressaiDecoder::CompressaiDecoder(const uint8_t* data, size_t size) : end_(data + size) {
  if (size < kStateWords * kWordBytes || size % kWordBytes != 0) {
    throw StreamError("must be at least 8 bytes and a multiple of 4, got " + std::to_string(size));
  }
  state_ = load_u32(data) | uint64_t{load_u32(data + kWordBytes)} << kWordBits;
  if (state_ < kCompressaiLowerBound || state_ >> kStateBits != 0) {
    throw StreamError("the state must be 2^31 .. 2^63 - 1, got " + std::to_string(state_));
  }
  word_ = data + kStateWords * kWordBytes;
}

void CompressaiDecoder::refill() {
  if (word_ == end_) throw StreamError("ends before its last symbol");
  state_ = state_ << kWordBits | load_u32(word_);
  word_ += kWordBytes;
}

uint32_t CompressaiDecoder::get_bits(int bits) {
  const uint32_t value = static_cast<uint32_t>(state_) & ((1u << bits) - 1);
  state_ >>= bits;
  if (state_ < kCompressaiLowerBound) refill();
  return value;
}

int32_t CompressaiDecoder::read_escape(const CompressaiTable& table) {
  const uint32_t digits = get_bits(kDigitBits);
  if (digits > kMaxDigits) {
    throw StreamError("an escaped value must have at most 8 digits, got " + std::to_string(digits));
  }
  uint32_t folded = 0;
  for (uint32_t i = 0; i < digits; ++i) folded |= get_bits(kDigitBits) << (kDigitBits * i);
  const int64_t distance = folded >> 1;
  const int64_t value =
      table.offset + ((folded & 1) != 0 ? -distance - 1 : table.num_values + distance);
  if (folded >> 31 != 0 || value < std::numeric_limits<int32_t>::min() ||
      value > std::numeric_limits<int32_t>::max()) {
    throw StreamError("an escaped value must lie in int32, got " + std::to_string(value));
  }
  return static_cast<int32_t>(value);
}

template <typename Index>
void CompressaiDecoder::pop(const Index* indexes, int64_t count, const CompressaiTables& tables,
                            int32_t* symbols) {
  const uint64_t num_tables = static_cast<uint64_t>(tables.size());
  uint64_t state = state_;
  const uint8_t* word = word_;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t index = as_unsigned(indexes[i]);
    if (index >= num_tables) fail_index(indexes[i], i, tables);
    const CompressaiTable& table = tables.table(static_cast<int64_t>(index));
    const uint32_t point = static_cast<uint32_t>(state) & kPointMask;
    const CompressaiBucket bucket =
        tables.buckets(static_cast<int64_t>(index))[point >> kBucketShift];
    uint32_t slot = bucket.slot;
    uint32_t slot_count = bucket.count;
    uint32_t distance = point - bucket.start;
    bool is_escape = bucket.is_escape != 0;
    if (distance >= slot_count) {
      // Ends: the last slot's end is above every point.
      const CompressaiSlot* slots = tables.slots(table);
      do {
        ++slot;
        slot_count = slots[slot].count;
        distance = point - slots[slot].start;
      } while (distance >= slot_count);
      is_escape = slot == static_cast<uint32_t>(table.num_values);
    }
    state = slot_count * (state >> kCompressaiPrecision) + distance;
    if (state < kCompressaiLowerBound) {
      if (word == end_) throw StreamError("ends before its last symbol");
      state = state << kWordBits | load_u32(word);
      word += kWordBytes;
    }
    symbols[i] = table.offset + static_cast<int32_t>(slot);
    if (is_escape) {
      state_ = state;
      word_ = word;
      symbols[i] = read_escape(table);
      state = state_;
      word = word_;
    }
  }
  state_ = state;
  word_ = word;
}

template void CompressaiDecoder::pop(const uint8_t*, int64_t, const CompressaiTables&, int32_t*);
template void CompressaiDecoder::pop(const int32_t*, int64_t, const CompressaiTables&, int32_t*);

void CompressaiDecoder::finish() const {
  if (word_ != end_) throw StreamError(std::to_string(end_ - word_) + " bytes are left over");
  if (state_ != kCompressaiLowerBound) {
    throw StreamError("the state must end at 2^31, got " + std::to_string(state_));
  }
}

}  // namespace groupedmixer::entropy
