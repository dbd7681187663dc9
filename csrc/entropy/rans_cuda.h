// SPDX-License-Identifier: MIT
//
// The coder's hot part on a GPU: a warp a stream, a thread a lane, so that symbols need not leave
// the device. The host reads a stream's header and writes it (rans.h); in between, what the coder
// knows of a stream lives on the device.

#pragma once

#include <cstdint>

#include "entropy/tables.h"

namespace groupedmixer::entropy {

// A set of tables in device memory.
struct DeviceTables {
  const Table* tables;
  const EncodeEntry* encode_entries;
  const uint32_t* decode_entries;
  int64_t size;
};

// What ended a stream's decoding too early. Decoders on the host word the same errors.
enum class RansFault : uint32_t {
  kNone = 0,
  kIndex,        // without a table
  kWords,        // ends before its last symbol
  kEscapeCut,    // an escaped value is cut short,
  kEscapeForm,   // ... is not in its shortest form,
  kEscapeLong,   // ... takes more than three bytes,
  kEscapeRange,  // ... does not lie in int16
};

// How far a stream has been decoded. Offsets count bytes from its beginning.
struct RansCursor {
  uint32_t states[kMaxLanes];
  uint32_t lanes;
  uint32_t word, words_end;  // escapes begin where the words end
  uint32_t escape, escapes_end;
  RansFault fault;  // once set, nothing more is decoded, and the symbols mean nothing
};

struct RansDecodeParams {
  const uint8_t* data;  // the stream
  RansCursor* cursor;
  const uint8_t* indexes;  // [count]
  int16_t* symbols;        // [count]
  int64_t count;
  int64_t skip_below;
  DeviceTables tables;
};

// A group of a stream. Enqueues on `stream`, a cudaStream_t; all pointers are device pointers.
void launch_rans_decode(const RansDecodeParams& params, void* stream);

}  // namespace groupedmixer::entropy
