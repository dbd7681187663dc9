// SPDX-License-Identifier: MIT
//
// Named tensors as a caller hands them over; nothing is copied. Names are those of weights files
// (docs/bitstream.md).

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace groupedmixer {

class WeightMap {
 public:
  // `data` has to outlive the map's use.
  void add(const std::string& name, std::vector<int64_t> shape, const float* data);

  // The tensor of this name and shape. Throws std::invalid_argument naming both if there is none.
  const float* get(const std::string& name, const std::vector<int64_t>& shape) const;

 private:
  struct Entry {
    std::vector<int64_t> shape;
    const float* data;
  };
  std::map<std::string, Entry> entries_;
};

}  // namespace groupedmixer
