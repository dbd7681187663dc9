// SPDX-License-Identifier: MIT

#include "entropy/tables.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

namespace groupedmixer::entropy {
namespace {

constexpr int32_t kMinValue = std::numeric_limits<int16_t>::min();
constexpr int32_t kMaxValue = std::numeric_limits<int16_t>::max();

// kPrecision - log2(count) by repeated squaring in integers, so that the number of lanes an encoder
// chooses from the costs does not depend on the machine's logarithm.
constexpr uint32_t cost_of(uint32_t count) {
  constexpr int kMantissaBits = 31;
  uint32_t exponent = 0;
  while (count >> (exponent + 1) != 0) ++exponent;
  uint64_t mantissa = static_cast<uint64_t>(count) << (kMantissaBits - exponent);
  uint32_t log2 = exponent;
  for (int bit = 0; bit < kCostBits; ++bit) {
    mantissa = mantissa * mantissa >> kMantissaBits;
    const uint32_t carry = static_cast<uint32_t>(mantissa >> (kMantissaBits + 1));
    mantissa >>= carry;
    log2 = log2 << 1 | carry;
  }
  return (static_cast<uint32_t>(kPrecision) << kCostBits) - log2;
}
static_assert(cost_of(1) == 12u << kCostBits && cost_of(2048) == 1u << kCostBits,
              "powers of two are exact");

std::array<uint32_t, kTotal> make_costs() {
  std::array<uint32_t, kTotal> costs{};
  for (uint32_t count = 1; count < kTotal; ++count) costs[count] = cost_of(count);
  return costs;
}

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_table(int64_t index, const uint16_t* counts, int32_t size, int32_t offset) {
  const std::string which = "of table " + std::to_string(index);
  const int64_t last = static_cast<int64_t>(offset) + size - 2;
  if (offset < kMinValue || last > kMaxValue) {
    fail("offsets: the values " + which + " must lie in int16, got " + std::to_string(offset) +
         " .. " + std::to_string(last));
  }
  uint32_t sum = 0;
  for (int32_t slot = 0; slot < size; ++slot) {
    if (counts[slot] == 0) {
      fail("counts: every slot " + which + " must have at least 1, got 0 at slot " +
           std::to_string(slot));
    }
    sum += counts[slot];
  }
  if (sum != kTotal) {
    fail("counts " + which + " must sum to " + std::to_string(kTotal) + ", got " +
         std::to_string(sum));
  }
}

// First value of the window of at most kFarCode values with the most counts.
int32_t heaviest_window(const uint16_t* counts, int32_t num_values) {
  const int32_t width = static_cast<int32_t>(kFarCode);
  if (num_values <= width) return 0;
  uint32_t mass = 0;
  for (int32_t slot = 0; slot < width; ++slot) mass += counts[slot];
  uint32_t best_mass = mass;
  int32_t best = 0;
  for (int32_t slot = width; slot < num_values; ++slot) {
    mass += counts[slot];
    mass -= counts[slot - width];
    if (mass > best_mass) {
      best_mass = mass;
      best = slot - width + 1;
    }
  }
  return best;
}

}  // namespace

Tables::Tables(const uint16_t* counts, int64_t num_counts, const int32_t* sizes,
               const int32_t* offsets, int64_t num_tables) {
  if (num_tables < 1 || num_tables > kMaxTables) {
    fail("sizes must name 1 .. " + std::to_string(kMaxTables) + " tables, got " +
         std::to_string(num_tables));
  }
  int64_t total_size = 0;
  for (int64_t i = 0; i < num_tables; ++i) {
    if (sizes[i] < 2 || sizes[i] > static_cast<int32_t>(kTotal)) {
      fail("sizes must be 2 .. " + std::to_string(kTotal) + ", got " + std::to_string(sizes[i]) +
           " for table " + std::to_string(i));
    }
    total_size += sizes[i];
  }
  if (total_size != num_counts) {
    fail("counts must have sum(sizes) = " + std::to_string(total_size) + " elements, got " +
         std::to_string(num_counts));
  }
  int64_t first = 0;
  for (int64_t i = 0; i < num_tables; ++i) {
    check_table(i, counts + first, sizes[i], offsets[i]);
    first += sizes[i];
  }

  tables_.reserve(num_tables);
  slot_ranges_.reserve(num_tables);
  encode_entries_.reserve(num_counts);
  decode_entries_.reserve(num_tables * kTotal);
  first = 0;
  for (int64_t i = 0; i < num_tables; ++i) {
    append_table(counts + first, sizes[i], offsets[i]);
    first += sizes[i];
  }
}

void Tables::append_table(const uint16_t* counts, int32_t size, int32_t offset) {
  static const std::array<uint32_t, kTotal> costs = make_costs();
  const int32_t num_values = size - 1;
  const int32_t near_slot = heaviest_window(counts, num_values);
  tables_.push_back(
      {offset, num_values, offset + near_slot, static_cast<uint32_t>(encode_entries_.size())});
  slot_ranges_.push_back({tables_.back().first - static_cast<uint32_t>(offset),
                          static_cast<int16_t>(offset), static_cast<uint16_t>(num_values)});
  uint32_t start = 0;
  for (int32_t slot = 0; slot < size; ++slot) {
    const uint32_t count = counts[slot];
    encode_entries_.push_back(
        {{static_cast<uint16_t>(start), static_cast<uint16_t>(count)}, costs[count]});
    const int32_t distance_from_base = slot - near_slot;
    const bool is_near = slot < num_values && distance_from_base >= 0 &&
                         distance_from_base < static_cast<int32_t>(kFarCode);
    const uint32_t code = is_near ? static_cast<uint32_t>(distance_from_base) : kFarCode;
    for (uint32_t distance = 0; distance < count; ++distance) {
      decode_entries_.push_back(pack_decode_entry(distance, count, code));
    }
    start += count;
  }
}

int32_t Tables::find_slot(const Table& table, uint32_t point) const {
  const EncodeEntry* begin = encode_entries(table);
  const EncodeEntry* after = std::upper_bound(
      begin, begin + table.num_values + 1, point,
      [](uint32_t p, const EncodeEntry& entry) { return p < entry.interval.start; });
  return static_cast<int32_t>(after - begin) - 1;
}

}  // namespace groupedmixer::entropy
