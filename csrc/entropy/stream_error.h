// SPDX-License-Identifier: MIT

#pragma once

#include <stdexcept>
#include <string>

namespace groupedmixer::entropy {

// A stream that no encoder wrote. Wrong arguments are std::invalid_argument instead.
class StreamError : public std::runtime_error {
 public:
  explicit StreamError(const std::string& message)
      : std::runtime_error("rANS stream: " + message) {}
};

}  // namespace groupedmixer::entropy
