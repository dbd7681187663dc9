// SPDX-License-Identifier: MIT
//
// What the test programs share.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

using Random = std::mt19937;

// first .. last
inline int uniform(Random& random, int first, int last) {
  return first + static_cast<int>(random() % static_cast<unsigned>(last - first + 1));
}

// Numbers without a pattern, about normal, of this spread.
inline std::vector<float> noise(Random& random, int64_t count, float spread) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) {
    float sum = -2.0f;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(random() >> 8) * 0x1p-24f;
    number = sum * spread * 1.7f;
  }
  return numbers;
}
