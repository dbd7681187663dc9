// SPDX-License-Identifier: MIT
//
// READ ME FIRST
//   - Symbols are encoded last-first and the buffer fills from its end, so nothing is written
//     before finish(). The decoder runs forwards. docs/bitstream.md specifies the bytes.
//   - Symbols come in groups, one push() or pop() each. Lanes live through all groups, but every
//     group starts at lane 0; the i-th coded symbol of a group belongs to lane i mod L.
//   - Symbols whose table index is below `skip_below` code nothing and are 0.
//   - The two classes are not thread-safe. They read no memory outside the arrays they are given,
//     whatever the stream says.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/uninitialized.h"
#include "entropy/tables.h"

namespace groupedmixer::entropy {

// What a stream begins with and where its parts lie, in bytes from its beginning.
struct StreamHeader {
  int lanes;
  std::array<uint32_t, kMaxLanes> states;
  size_t words;
  size_t escapes;  // the words end here
  size_t end;
};

// Throws StreamError.
StreamHeader parse_header(const uint8_t* data,  // [size]
                          size_t size);

// The bytes ahead of a stream's words.
std::vector<uint8_t> make_header(int lanes,
                                 const uint32_t* states,  // [lanes]
                                 uint64_t escape_bytes);

// Throws StreamError unless a stream ends where a decoder stands: with so many bytes of words and
// escapes left, in these states.
void check_end(uint64_t word_bytes, uint64_t escape_bytes, int lanes,
               const uint32_t* states);  // [lanes]

class Encoder {
 public:
  // Adds a group. `Index` is uint8_t or uint16_t. Throws std::invalid_argument or std::bad_alloc,
  // and is then unchanged.
  template <typename Index>
  void push(const int16_t* symbols,  // [count]
            const Index* indexes,    // [count]
            int64_t count, const Tables& tables, int64_t skip_below);

  // The stream of all groups so far. `lanes` is 1, 4, 8, 16, 32 or 0 (chosen from the size).
  std::vector<uint8_t> finish(int lanes) const;

  // Size of the coded symbols and escapes, without header and states.
  double estimated_bits() const;

  // Symbols so far that were not skipped, and those of them that went through the escape.
  size_t num_coded() const { return intervals_.size(); }
  size_t num_escaped() const { return num_escaped_; }

 private:
  template <typename Index>
  void look_up(const int16_t* symbols,  // [count]
               const Index* indexes,    // [count]
               int64_t count, const Tables& tables);
  void encode(const Interval* intervals, size_t count, uint32_t* states, int lanes,
              uint8_t*& cursor) const;

  UninitializedVector<Interval> intervals_;  // of all coded symbols, in coding order
  std::vector<size_t> group_ends_;           // in intervals_
  std::vector<uint8_t> escapes_;
  size_t num_escaped_ = 0;
  uint64_t cost_ = 0;  // of intervals_, in units of 2^-kCostBits bits
};

class Decoder {
 public:
  // Does not copy: `data` has to outlive the decoder. Throws StreamError.
  Decoder(const uint8_t* data,  // [size]
          size_t size);

  int lanes() const { return lanes_; }

  // Decodes a group. Throws StreamError or std::invalid_argument; the decoder is unusable
  // afterwards.
  template <typename Index>
  void pop(const Index* indexes,  // [count]
           int64_t count, const Tables& tables, int64_t skip_below,
           int16_t* symbols);  // [count]

  // Checks that the stream ends here: all bytes read, all states back at their start.
  void finish();

 private:
  enum class Status { kReady, kFailed, kFinished };

  void require_ready() const;
  template <typename Index>
  void decode(const Index* indexes, int64_t count, const Tables& tables, int16_t* symbols);
  int16_t read_escape(const Table& table);

  int lanes_ = 0;
  Status status_ = Status::kReady;
  std::array<uint32_t, kMaxLanes> states_{};
  const uint8_t* word_ = nullptr;  // next 16-bit word; the words end where the escapes start
  const uint8_t* words_end_ = nullptr;
  const uint8_t* escape_ = nullptr;  // next escape
  const uint8_t* end_ = nullptr;
};

}  // namespace groupedmixer::entropy
