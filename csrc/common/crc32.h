// SPDX-License-Identifier: MIT
//
// CRC-32 of zlib, PNG and gzip.

#pragma once

#include <cstddef>
#include <cstdint>

namespace groupedmixer {

// `crc` continues an earlier result; 0 starts.
uint32_t crc32(uint32_t crc, const void* data, size_t size);

}  // namespace groupedmixer
