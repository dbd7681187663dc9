// SPDX-License-Identifier: MIT
//
// The coder's arithmetic that the host and a GPU share: numbers of a stream's layout, the
// reciprocals of the encoder, escapes, the choice of lanes. docs/bitstream.md specifies the bytes.

#pragma once

#include <array>
#include <cstdint>

#include "entropy/tables.h"

namespace groupedmixer::entropy {

constexpr int kWordBits = 16;
constexpr int kWordBytes = 2;
constexpr int kStateBytes = 4;
constexpr int kMaxEscapeBytes = 3;  // 2 * (32767 + 32768) + 1 < 2^21

// Numbers of lanes, by the code in a stream's first byte: 1, 4, 8, 16, 32.
constexpr int kLaneCodes = 5;
constexpr int lanes_of_code(int code) { return code == 0 ? 1 : 2 << code; }
static_assert(lanes_of_code(1) == 4 && lanes_of_code(kLaneCodes - 1) == kMaxLanes);

// A state must be below count << kEncodeShift before its symbol is encoded, to stay below 2^32
// after.
constexpr int kEncodeShift = 32 - kPrecision;
static_assert((kLowerBound >> kPrecision) << kWordBits == 1u << kEncodeShift,
              "one word at most leaves or enters a state per symbol");

// x / count == x * reciprocal(count) >> kReciprocalBits for every x < count << kEncodeShift:
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

// By count; the first is of no count.
inline constexpr std::array<uint64_t, kTotal> kReciprocals = make_reciprocals();

// The distance of a value outside the support, with its side in the lowest bit.
constexpr uint32_t fold_escape(int32_t value, const Table& table) {
  const int32_t last = table.offset + table.num_values - 1;
  return value > last ? 2u * static_cast<uint32_t>(value - last - 1)
                      : 2u * static_cast<uint32_t>(table.offset - 1 - value) + 1u;
}
constexpr int32_t unfold_escape(uint32_t folded, const Table& table) {
  const int32_t distance = static_cast<int32_t>(folded >> 1);
  return (folded & 1) != 0 ? table.offset - 1 - distance
                           : table.offset + table.num_values + distance;
}

// The number of lanes for symbols of this cost, in units of 2^-kCostBits bits, and so many bytes of
// escapes: the most whose flush, kStateBytes a lane, is at most 0.75 % of both. Integers
// throughout: the choice is part of the bytes.
constexpr int choose_lanes(uint64_t cost, uint64_t escape_bytes) {
  const uint64_t payload = cost + (uint64_t{8} * escape_bytes << kCostBits);
  int chosen = lanes_of_code(0);
  for (int code = 1; code < kLaneCodes; ++code) {
    const auto lanes = static_cast<uint64_t>(lanes_of_code(code));
    const uint64_t flush = uint64_t{8} * kStateBytes * lanes << kCostBits;
    if (flush * 10000 <= payload * 75) chosen = lanes_of_code(code);
  }
  return chosen;
}

}  // namespace groupedmixer::entropy
