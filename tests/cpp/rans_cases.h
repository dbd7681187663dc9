// SPDX-License-Identifier: MIT
//
// READ ME FIRST
//   Tables, groups and streams for the tests of the coder. Whatever the coder is given lies in heap
//   memory of exactly its size, so that a sanitizer sees every step too far.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "entropy/rans.h"
#include "testing.h"

namespace groupedmixer::entropy {

inline Tables make_tables(const std::vector<uint16_t>& counts, const std::vector<int32_t>& sizes,
                          const std::vector<int32_t>& offsets) {
  return Tables(counts.data(), static_cast<int64_t>(counts.size()), sizes.data(), offsets.data(),
                static_cast<int64_t>(sizes.size()));
}

struct Group {
  const Tables* tables = nullptr;
  std::vector<int16_t> symbols;
  std::vector<uint16_t> indexes;  // as many
  int64_t skip_below = 0;
  bool bytes = false;  // the coder gets the indexes as uint8_t
};

template <typename T, typename From>
std::unique_ptr<T[]> exact_copy(const std::vector<From>& from) {
  std::unique_ptr<T[]> copy(new T[from.size()]);
  std::transform(from.begin(), from.end(), copy.get(), [](From x) { return static_cast<T>(x); });
  return copy;
}

inline void push(Encoder& encoder, const Group& group) {
  const auto symbols = exact_copy<int16_t>(group.symbols);
  const auto count = static_cast<int64_t>(group.symbols.size());
  const auto push_with = [&](const auto& indexes) {
    encoder.push(symbols.get(), indexes.get(), count, *group.tables, group.skip_below);
  };
  if (group.bytes) {
    push_with(exact_copy<uint8_t>(group.indexes));
  } else {
    push_with(exact_copy<uint16_t>(group.indexes));
  }
}

// Replaces the group's symbols.
inline void pop(Decoder& decoder, Group& group) {
  const size_t count = group.indexes.size();
  const std::unique_ptr<int16_t[]> symbols(new int16_t[count]);
  const auto pop_with = [&](const auto& indexes) {
    decoder.pop(indexes.get(), static_cast<int64_t>(count), *group.tables, group.skip_below,
                symbols.get());
  };
  if (group.bytes) {
    pop_with(exact_copy<uint8_t>(group.indexes));
  } else {
    pop_with(exact_copy<uint16_t>(group.indexes));
  }
  group.symbols.assign(symbols.get(), symbols.get() + count);
}

inline std::vector<uint8_t> encode(const std::vector<Group>& groups, int lanes) {
  Encoder encoder;
  for (const Group& group : groups) push(encoder, group);
  return encoder.finish(lanes);
}

// `like`: the groups, whose symbols do not matter.
inline std::vector<Group> decode(const std::vector<uint8_t>& stream,
                                 const std::vector<Group>& like) {
  const auto bytes = exact_copy<uint8_t>(stream);
  Decoder decoder(bytes.get(), stream.size());
  std::vector<Group> groups = like;
  for (Group& group : groups) pop(decoder, group);
  decoder.finish();
  return groups;
}

inline bool same_symbols(const std::vector<Group>& a, const std::vector<Group>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Group& x, const Group& y) { return x.symbols == y.symbols; });
}

// One of the numbers.
template <typename T>
T one_of(Random& random, std::initializer_list<T> choices) {
  return choices.begin()[uniform(random, 0, static_cast<int>(choices.size()) - 1)];
}

// Counts of a table: even, heaped up somewhere, or all but the least in one slot.
inline std::vector<uint16_t> random_counts(Random& random, int size) {
  std::vector<uint16_t> counts(static_cast<size_t>(size), 1);
  const int spread = one_of(random, {0, 3, 40, size});
  const int centre = one_of(random, {0, size - 1, uniform(random, 0, size - 1)});
  const int first = std::max(0, centre - spread);
  const int last = std::min(size - 1, centre + spread);
  for (int left = static_cast<int>(kTotal) - size; left > 0;) {
    const int share = first == last ? left : uniform(random, 1, (left + 1) / 2);
    uint16_t& count = counts[static_cast<size_t>(uniform(random, first, last))];
    count = static_cast<uint16_t>(count + share);
    left -= share;
  }
  return counts;
}

// Tables of all sizes and places, among them the extremes of the format, and those around the
// number of values that a decode entry can name.
inline Tables random_tables(Random& random, int num_tables) {
  constexpr int kMinValue = std::numeric_limits<int16_t>::min();
  constexpr int kMaxValue = std::numeric_limits<int16_t>::max();
  constexpr int kLargest = static_cast<int>(kTotal);
  constexpr int kAllNear = static_cast<int>(kFarCode) + 1;  // with the escape
  std::vector<uint16_t> counts;
  std::vector<int32_t> sizes, offsets;
  for (int i = 0; i < num_tables; ++i) {
    const int size = one_of(random, {2, 3, uniform(random, 2, 40), uniform(random, 2, 40),
                                     uniform(random, kAllNear - 1, kAllNear + 2), 600,
                                     uniform(random, 2, kLargest), kLargest});
    const int last_offset = kMaxValue - (size - 2);
    const std::vector<uint16_t> shares = random_counts(random, size);
    counts.insert(counts.end(), shares.begin(), shares.end());
    sizes.push_back(size);
    offsets.push_back(one_of(random, {-size / 2, uniform(random, -30, 10), kMinValue, last_offset,
                                      uniform(random, kMinValue, last_offset)}));
  }
  return make_tables(counts, sizes, offsets);
}

enum class Content { kAnyValue, kLikely, kEscapes, kOneValue, kMixed };

// A value of the table, or (where there is one at that distance) one that escapes.
inline int random_value(Random& random, const Tables& tables, const Table& table, Content content) {
  const int last = table.offset + table.num_values - 1;
  int slot = uniform(random, 0, table.num_values - 1);
  if (content == Content::kLikely) slot = tables.find_slot(table, random() % kTotal);
  if (content == Content::kEscapes || slot == table.num_values) {
    // The ends of the escapes' lengths, with the side in the lowest bit: 2^7 and 2^14.
    const int distance = one_of(random, {0, uniform(random, 0, 9), uniform(random, 62, 65),
                                         uniform(random, 8190, 8193), uniform(random, 0, 65535)});
    const int value = (random() & 1) != 0 ? last + 1 + distance : table.offset - 1 - distance;
    return std::clamp<int>(value, std::numeric_limits<int16_t>::min(),
                           std::numeric_limits<int16_t>::max());
  }
  return table.offset + slot;
}

// A group of `count` symbols, all kinds of which are as likely as the usual one.
inline Group random_group(Random& random, const Tables& tables, int count) {
  Group group;
  group.tables = &tables;
  const int size = static_cast<int>(tables.size());
  group.bytes = size <= 64 ? (random() & 1) != 0 : (random() & 7) == 0;
  const int last_index = group.bytes ? std::min(size - 1, 255) : size - 1;
  group.skip_below = one_of(random, {0, 0, 0, uniform(random, 0, last_index), size});
  const auto content = static_cast<Content>(uniform(random, 0, 4));
  const int only_index = (random() & 3) == 0 ? uniform(random, 0, last_index) : -1;
  for (int i = 0; i < count; ++i) {
    const int index = only_index >= 0 ? only_index : uniform(random, 0, last_index);
    const Table& table = tables.table(index);
    int value = table.offset;
    if (content == Content::kMixed) {
      const Content now = (random() & 15) == 0 ? Content::kEscapes : Content::kLikely;
      value = random_value(random, tables, table, now);
    } else if (content != Content::kOneValue) {
      value = random_value(random, tables, table, content);
    }
    group.indexes.push_back(static_cast<uint16_t>(index));
    group.symbols.push_back(static_cast<int16_t>(index < group.skip_below ? 0 : value));
  }
  return group;
}

}  // namespace groupedmixer::entropy
