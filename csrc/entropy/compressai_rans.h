// SPDX-License-Identifier: MIT
//
// The stream of compressai's rANS coder (compressai.ans), byte for byte.
//
// READ ME FIRST
//   - One 64-bit state in [2^31, 2^63), 16-bit probabilities, little-endian 32-bit words. A stream
//     is the final state (8 bytes), then the words in the order in which a decoder takes them.
//   - Symbols are encoded last-first and the buffer fills from its end, so an encoder is given
//     groups, and walks through each, from the last to the first. The decoder runs forwards.
//   - Slot s of a table stands for the value offset + s, except the last one, the escape. A value
//     outside is folded (2d for d above the values, 2d - 1 for d below) and follows the escape in
//     raw 4-bit digits: their number, then the digits from the lowest.
//   - A stream does not say how it ends; but an encoder starts at kCompressaiLowerBound, so a
//     decoder that has taken all symbols has to end there.
//   - compressai trusts its streams. Here, whatever they say, no memory outside is read.
//   - compressai's encoder never ends for values 2^27 or more from their table, which take 8
//   digits;
//     its decoder reads them. Here the limit is 2^30.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace groupedmixer::entropy {

constexpr int kCompressaiPrecision = 16;
constexpr uint64_t kCompressaiLowerBound = uint64_t{1} << 31;

// What the encoder needs to know of a slot: with q = state / count,
//   q = state * reciprocal >> 64 + shift, exactly, and
//   (q << 16) + state % count + start = state + bias + q * (65536 - count).
struct CompressaiEncodeEntry {
  uint64_t reciprocal;
  uint32_t bias;
  uint16_t count;  // 0: cannot be coded
  uint16_t shift;
};

// What the decoder needs to know of a slot.
struct CompressaiSlot {
  uint16_t start;
  uint16_t count;
};

// The slot that the first point of a bucket falls into. For most points it is their own, found in
// one load; the others look through the slots behind it. 256 buckets keep the tables in use within
// the first-level cache, which a table of all 65536 points does not.
struct CompressaiBucket {
  uint16_t start;
  uint16_t count;
  uint16_t slot;
  uint16_t is_escape;
};

constexpr int kCompressaiBucketBits = 8;

struct CompressaiTable {
  int32_t offset;      // value of slot 0
  int32_t num_values;  // slots without the escape
  size_t first;        // the table's first slot in the set
};

// A validated, immutable set of tables.
class CompressaiTables {
 public:
  // Throws std::invalid_argument that names the argument, the rule and the value.
  CompressaiTables(const int32_t* cdfs,     // [num_tables, row]
                   const int32_t* sizes,    // [num_tables], of each row's used part: slots + 1
                   const int32_t* offsets,  // [num_tables]
                   int64_t num_tables, int64_t row);

  int64_t size() const { return static_cast<int64_t>(tables_.size()); }
  const CompressaiTable& table(int64_t index) const { return tables_[index]; }
  const CompressaiEncodeEntry* encode_entries(const CompressaiTable& table) const {
    return encode_entries_.data() + table.first;
  }
  const CompressaiSlot* slots(const CompressaiTable& table) const {
    return slots_.data() + table.first;
  }
  const CompressaiBucket* buckets(int64_t index) const {
    return buckets_.data() + (index << kCompressaiBucketBits);
  }

 private:
  void append_table(const int32_t* cdf, int32_t size, int32_t offset);

  std::vector<CompressaiTable> tables_;
  std::vector<CompressaiEncodeEntry> encode_entries_;
  std::vector<CompressaiSlot> slots_;
  std::vector<CompressaiBucket> buckets_;  // [num_tables, 1 << kCompressaiBucketBits]
};

// Writes one stream. Not thread-safe; after an exception unusable.
class CompressaiEncoder {
 public:
  // Puts a group in front of those there are. `Index` is uint8_t or int32_t. Throws
  // std::invalid_argument or std::bad_alloc.
  template <typename Index>
  void prepend(const int32_t* symbols,  // [count]
               const Index* indexes,    // [count]
               int64_t count, const CompressaiTables& tables);

  // Puts the state in front, which completes the stream: `size()` bytes at `data()`.
  void finish();
  const uint8_t* data() const { return buffer_.get() + cursor_; }
  size_t size() const { return capacity_ - cursor_; }

 private:
  void reserve(size_t words);
  void put_bits(uint32_t value, int bits);
  uint32_t escape(int64_t slot, const CompressaiTable& table, int64_t position);

  std::unique_ptr<uint8_t[]> buffer_;  // used from cursor_ to its end
  size_t capacity_ = 0;
  size_t cursor_ = 0;
  uint64_t state_ = kCompressaiLowerBound;
};

// Reads a stream group by group. Not thread-safe; after an exception unusable.
class CompressaiDecoder {
 public:
  // Does not copy: `data` has to outlive the decoder. Throws StreamError.
  CompressaiDecoder(const uint8_t* data,  // [size]
                    size_t size);

  // Decodes the next group. Throws StreamError or std::invalid_argument.
  template <typename Index>
  void pop(const Index* indexes,  // [count]
           int64_t count, const CompressaiTables& tables,
           int32_t* symbols);  // [count]

  // Checks that the stream ends here.
  void finish() const;

 private:
  uint32_t get_bits(int bits);
  int32_t read_escape(const CompressaiTable& table);
  void refill();

  uint64_t state_ = 0;
  const uint8_t* word_ = nullptr;
  const uint8_t* end_ = nullptr;
};

}  // namespace groupedmixer::entropy
