// SPDX-License-Identifier: MIT
//
// What rans_isa.cpp exports, once per ISA variant: the loops of the coder over whole rounds of its
// lanes, without branches but for what is rare. A kernel does as much as it can and says how far it
// came; rans.cpp goes on from there, symbol by symbol, and words the errors. So a kernel may stop
// between any two rounds, and the bytes are the same whether it does much or nothing.

#pragma once

#include <cstdint>

#include "entropy/tables.h"

namespace groupedmixer::entropy {

// States in a vector; kernels take streams whose number of lanes is a multiple.
constexpr int kStates = 16;

// A symbol that its decode entry does not name: an escape, or a value far from the others.
struct FarSymbol {
  uint32_t position;
  uint32_t point;
};

// What a stream's lanes leave and enter. Symbols are counted from the beginning of the run, which
// is at lane 0.
struct DecodeRun {
  uint32_t* states;  // [lanes]
  int lanes;
  const uint8_t* word;
  const uint8_t* words_end;
  const uint32_t* entries;  // [num_tables, kTotal]
  const Table* tables;      // [num_tables]
  int64_t num_tables;
  int16_t* symbols;  // [count]; far ones are left to the caller
  FarSymbol* far;    // [far_capacity], by position
  int64_t far_capacity;
  int64_t num_far;
};

struct LookUpRun {
  const SlotRange* ranges;     // [num_tables]
  const EncodeEntry* entries;  // of all tables
  int64_t num_tables;
  Interval* intervals;  // [count]
  uint32_t* escaped;    // [escaped_capacity], positions of symbols that are not in their tables
  int64_t escaped_capacity;
  int64_t num_escaped;
  uint64_t cost;  // of the intervals
};

struct EncodeRun {
  uint32_t* states;  // [lanes]
  int lanes;
  uint8_t* cursor;  // words go in front of it, where 16 bytes more may be overwritten
};

struct RansKernels {
  // Stops at an index without a table, where the words or `far` may not suffice, and less than a
  // round from the end. Returns how many symbols it decoded.
  int64_t (*decode_bytes)(DecodeRun& run, const uint8_t* indexes, int64_t count);
  int64_t (*decode_words)(DecodeRun& run, const uint16_t* indexes, int64_t count);

  // Stops at an index without a table, where `escaped` may not suffice, and less than kStates
  // symbols from the end. Returns how many symbols it looked up.
  int64_t (*look_up_bytes)(LookUpRun& run, const int16_t* symbols, const uint8_t* indexes,
                           int64_t count);
  int64_t (*look_up_words)(LookUpRun& run, const int16_t* symbols, const uint16_t* indexes,
                           int64_t count);

  // Encodes, last first, all of count symbols, which is a number of whole rounds.
  void (*encode)(EncodeRun& run, const Interval* intervals, int64_t count);
};

}  // namespace groupedmixer::entropy
