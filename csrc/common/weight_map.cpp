// SPDX-License-Identifier: MIT

#include "common/weight_map.h"

#include <stdexcept>
#include <utility>

namespace groupedmixer {
namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string joined = "[";
  for (const int64_t side : shape) joined += (joined.size() > 1 ? ", " : "") + std::to_string(side);
  return joined + "]";
}

}  // namespace

void WeightMap::add(const std::string& name, std::vector<int64_t> shape, const float* data) {
  entries_[name] = {std::move(shape), data};
}

const float* WeightMap::get(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) {
    throw std::invalid_argument("weights must have '" + name + "' of shape " + text(shape));
  }
  if (entry->second.shape != shape) {
    throw std::invalid_argument(name + " must have the shape " + text(shape) + ", got " +
                                text(entry->second.shape));
  }
  return entry->second.data;
}

}  // namespace groupedmixer
