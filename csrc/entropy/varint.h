// SPDX-License-Identifier: MIT
//
// Unsigned LEB128: seven bits a byte, least significant first, the top bit set on all bytes but the
// last. Only the shortest form of a number is written, and only that is accepted, so that a stream
// has one spelling.

#pragma once

#include <cstdint>
#include <vector>

#include "entropy/stream_error.h"

namespace groupedmixer::entropy {

inline void append_varint(uint64_t value, std::vector<uint8_t>& out) {
  while (value >= 0x80) {
    out.push_back(static_cast<uint8_t>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<uint8_t>(value));
}

// Reads one number of at most `max_bytes` <= 9 bytes and moves `cursor` past it.
inline uint64_t read_varint(const uint8_t*& cursor, const uint8_t* end, int max_bytes,
                            const char* what) {
  uint64_t value = 0;
  for (int i = 0; i < max_bytes; ++i) {
    if (cursor == end) throw StreamError(std::string(what) + " is cut short");
    const uint8_t byte = *cursor++;
    value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) {
      if (byte == 0 && i > 0) throw StreamError(std::string(what) + " is not in shortest form");
      return value;
    }
  }
  throw StreamError(std::string(what) + " must take at most " + std::to_string(max_bytes) +
                    " bytes, got more");
}

}  // namespace groupedmixer::entropy
