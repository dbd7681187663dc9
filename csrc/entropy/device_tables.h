// SPDX-License-Identifier: MIT
//
// A set of tables on a GPU. For .cu files and headers that only they include.

#pragma once

#include <cstddef>

#include "common/device_memory.h"
#include "entropy/rans_cuda.h"
#include "entropy/rans_layout.h"
#include "entropy/tables.h"

namespace groupedmixer::entropy {

class DeviceTableSet {
 public:
  // Copies.
  explicit DeviceTableSet(const Tables& tables)
      : tables_(tables.all(), static_cast<std::size_t>(tables.size())),
        encode_entries_(tables.encode_entries(), num_slots(tables)),
        decode_entries_(tables.decode_entries(0), static_cast<std::size_t>(tables.size()) * kTotal),
        reciprocals_(kReciprocals),
        size_(static_cast<uint32_t>(tables.size())) {}

  // Valid as long as the set.
  DeviceTables view() const {
    return {tables_.data(), encode_entries_.data(), decode_entries_.data(), reciprocals_.data(),
            size_};
  }

 private:
  static std::size_t num_slots(const Tables& tables) {
    const Table& last = tables.table(tables.size() - 1);
    return last.first + static_cast<std::size_t>(last.num_values) + 1;
  }

  DeviceArray<Table> tables_;
  DeviceArray<EncodeEntry> encode_entries_;
  DeviceArray<uint32_t> decode_entries_;
  DeviceArray<uint64_t> reciprocals_;
  uint32_t size_;
};

}  // namespace groupedmixer::entropy
