// SPDX-License-Identifier: MIT
//
// The coder's decoder on a GPU: a block a stream, a thread of its first warp a lane, so that
// symbols need not leave the device. The host reads a stream's header (rans.h) and judges how its
// decoding ended; in between, what the coder knows of a stream lives on the device.

#pragma once

#include <cstddef>
#include <cstdint>

#include "common/tile_set.h"
#include "entropy/rans.h"
#include "entropy/tables.h"

namespace groupedmixer::entropy {

// A set of tables in device memory.
struct DeviceTables {
  const Table* tables;                // [size]
  const EncodeEntry* encode_entries;  // of all tables
  const uint32_t* decode_entries;     // [size, kTotal]
  const uint64_t* reciprocals;        // kReciprocals
  uint32_t size;
};

// What ended a stream's decoding too early.
enum class RansFault : uint32_t {
  kNone = 0,
  kIndex,        // without a table
  kWords,        // ends before its last symbol
  kEscapeCut,    // an escaped value is cut short,
  kEscapeForm,   // ... is not in its shortest form,
  kEscapeLong,   // ... takes more than three bytes,
  kEscapeRange,  // ... does not lie in int16
};

// How far a stream has been decoded. Offsets count bytes from the beginning of all data.
struct RansCursor {
  uint32_t states[kMaxLanes];
  uint32_t lanes;
  uint32_t word, words_end;  // escapes begin where the words end
  uint32_t escape, escapes_end;
  RansFault fault;        // once set, nothing more is decoded, and the values mean nothing
  int32_t escaped_value;  // of kEscapeRange
};

// Where all streams' data have to end: kernels look ahead, in 32 bits.
constexpr uint64_t kMaxStreamData = (uint64_t{1} << 32) - 1024;

// A decoder at the beginning of a stream that lies `offset` bytes into the data. Throws
// std::invalid_argument if it would end behind kMaxStreamData.
RansCursor make_cursor(const StreamHeader& header, uint64_t offset);

// What Decoder::pop throws: StreamError or std::invalid_argument if there is a fault.
void check_fault(const RansCursor& cursor);

// ... and what Decoder::finish throws unless the stream ends here.
void check_finished(const RansCursor& cursor);

// A group of the latent: stream i holds the elements of tile i.
struct RansGroupDecodeParams {
  const uint8_t* data;  // all streams
  RansCursor* cursors;  // [set.count]
  TileSet set;          // of T tokens
  int32_t channels;     // C; a tile has less than 2^31 elements
  int32_t skip_below;
  DeviceTables tables;
  const uint8_t* indexes;  // [T, C]
  const float* mean;       // [T, C]
  float* y_hat;            // [T, C], symbol + mean; what belongs to no tile stays as it is
};

// A group in which the index of element i is i mod tables.size, as in z: nothing is skipped.
struct RansChannelDecodeParams {
  const uint8_t* data;
  RansCursor* cursor;
  DeviceTables tables;
  int16_t* symbols;  // [count]
  int32_t count;
};

// Enqueue on `stream`, a cudaStream_t; all pointers are device pointers. Throw std::runtime_error
// if the launch fails.
void launch_rans_group_decode(const RansGroupDecodeParams& params, void* stream);
void launch_rans_channel_decode(const RansChannelDecodeParams& params, void* stream);

}  // namespace groupedmixer::entropy
