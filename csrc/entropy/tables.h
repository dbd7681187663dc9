// SPDX-License-Identifier: MIT
//
// READ ME FIRST
//   A *slot* is a position in a table; a *value* is what the caller codes. Slot s of a table stands
//   for the value offset + s, except the last slot, which is the escape and stands for every other
//   value. Counts are in units of 1 / kTotal. No count may be 0 (a value of the support must be
//   codable) and none may be kTotal (a symbol of zero bits would make the coder's reciprocals
//   overflow).

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace groupedmixer::entropy {

constexpr int kPrecision = 12;
constexpr uint32_t kTotal = 1u << kPrecision;

// Of a stream's coder states, of which a stream has up to kMaxLanes. An encoder starts at the
// bound, so a decoder has to end there.
constexpr int kMaxLanes = 32;
constexpr uint32_t kLowerBound = 1u << 16;

// A table takes 16 KiB of memory but as little as 10 bytes of a file; this bounds what a hostile
// file can ask for to 64 MiB.
constexpr int64_t kMaxTables = 4096;

// Fraction bits of the costs in EncodeEntry.
constexpr int kCostBits = 16;

// A slot's part of the probability line.
struct Interval {
  uint16_t start;  // sum of the counts before the slot
  uint16_t count;
};

// What the encoder needs to know of a slot.
struct EncodeEntry {
  Interval interval;
  uint32_t cost;  // kPrecision - log2(count), in units of 2^-kCostBits bits, rounded up
};

// A decode entry packs what one of the kTotal points of the probability line leads to. One load
// yields everything a decoder usually needs, and 64 tables take 1 MB.
//   bits  0..11  the point's distance from its slot's start
//   bits 12..23  the slot's count
//   bits 24..31  value - Table::near_base, or kFarCode: an escape or a value outside the window
constexpr uint32_t kFarCode = 255;

constexpr uint32_t pack_decode_entry(uint32_t distance, uint32_t count, uint32_t code) {
  return distance | count << kPrecision | code << (2 * kPrecision);
}
constexpr uint32_t entry_distance(uint32_t entry) { return entry & (kTotal - 1); }
constexpr uint32_t entry_count(uint32_t entry) { return entry >> kPrecision & (kTotal - 1); }
constexpr uint32_t entry_code(uint32_t entry) { return entry >> (2 * kPrecision); }
static_assert(3 * kPrecision - 4 == 32, "distance, count and an 8-bit code fill the entry");

struct Table {
  int32_t offset;      // value of slot 0
  int32_t num_values;  // slots without the escape
  int32_t near_base;   // first of the (up to) kFarCode values that a decode entry can name
  uint32_t first;      // the table's first EncodeEntry in the set
};

// Of a table, as one number to load: its value's slot is value - offset, and value 0 would have the
// EncodeEntry entry_of_zero (modulo 2^32) of the set.
struct SlotRange {
  uint32_t entry_of_zero;
  int16_t offset;
  uint16_t num_values;
};

// A validated, immutable set of tables.
class Tables {
 public:
  // Throws std::invalid_argument that names the argument, the rule and the value.
  Tables(const uint16_t* counts,  // [num_counts], the tables' counts one after another
         int64_t num_counts,
         const int32_t* sizes,    // [num_tables], slots of each table, 2 .. kTotal
         const int32_t* offsets,  // [num_tables], value of each table's slot 0
         int64_t num_tables);

  int64_t size() const { return static_cast<int64_t>(tables_.size()); }
  const Table& table(int64_t index) const { return tables_[static_cast<size_t>(index)]; }
  const Table* all() const { return tables_.data(); }                   // [size()]
  const SlotRange* slot_ranges() const { return slot_ranges_.data(); }  // [size()]

  // Of all tables; a table's num_values + 1 slots begin at its `first`.
  const EncodeEntry* encode_entries() const { return encode_entries_.data(); }
  const EncodeEntry* encode_entries(const Table& table) const {
    return encode_entries_.data() + table.first;
  }

  // The table's kTotal points.
  const uint32_t* decode_entries(int64_t index) const {
    return decode_entries_.data() + index * kTotal;
  }

  // The slot that `point` falls into, by binary search; for entries marked kFarCode.
  int32_t find_slot(const Table& table, uint32_t point) const;

 private:
  void append_table(const uint16_t* counts, int32_t size, int32_t offset);

  std::vector<Table> tables_;
  std::vector<SlotRange> slot_ranges_;
  std::vector<EncodeEntry> encode_entries_;
  std::vector<uint32_t> decode_entries_;  // [num_tables, kTotal]
};

}  // namespace groupedmixer::entropy
