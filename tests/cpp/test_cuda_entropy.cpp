// SPDX-License-Identifier: MIT
//
// The coder's CUDA kernels and the checksum's, executed on the host (cuda_host/cuda_runtime.h),
// give the bits of the CPU's functions and classes, whatever the order of threads. One function a
// family of kernels.

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/crc32.h"
#include "common/crc32_cuda.h"
#include "common/cuda_memory.h"
#include "common/tile_failures.h"
#include "common/tile_set.h"
#include "cuda_testing.h"
#include "entropy/device_tables.h"
#include "entropy/rans.h"
#include "entropy/rans_cuda.h"
#include "entropy/rans_encode_cuda.h"
#include "entropy/stream_error.h"
#include "entropy/symbols.h"
#include "rans_cases.h"

namespace {

namespace entropy = groupedmixer::entropy;
using cuda_host::Order;
using groupedmixer::TileSet;

// ---- entropy/symbols_cuda.cu --------------------------------------------------------------------

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Symbols {
  std::vector<float> y, mean, raw_scale;  // [count]
  std::vector<float> thresholds;          // [num_thresholds], ascending
};

// Some of the scales are thresholds, some of the differences halves or far out of range.
Symbols random_symbols(Random& random, int count, int num_thresholds) {
  Symbols symbols = {noise(random, count, 20.0f), noise(random, count, 3.0f),
                     noise(random, count, 2.0f), noise(random, num_thresholds, 2.0f)};
  std::sort(symbols.thresholds.begin(), symbols.thresholds.end());
  for (size_t i = 0; i < symbols.y.size(); ++i) {
    const int kind = uniform(random, 0, 9);
    if (kind == 0) symbols.y[i] = symbols.mean[i] = 0.0f;
    if (kind == 1) symbols.mean[i] = symbols.y[i] + static_cast<float>(uniform(random, -5, 5));
    if (kind == 2) {
      symbols.y[i] = static_cast<float>(uniform(random, -70000, 70000)) / 2;
      symbols.mean[i] = 0.0f;
    }
    if (kind == 3 && num_thresholds > 0) {
      const int t = uniform(random, 0, num_thresholds - 1);
      symbols.raw_scale[i] = symbols.thresholds[static_cast<size_t>(t)];
    }
  }
  return symbols;
}

std::vector<float> random_dead_zone(int count) {
  Random random{static_cast<uint32_t>(count)};
  std::vector<float> zone;
  for (int i = 0; i < count; ++i) zone.push_back(static_cast<float>(uniform(random, 0, 99)) / 64);
  return zone;
}

void check_quantize_group(const Symbols& in, int64_t skip_below, uint32_t expected_bits,
                          const std::vector<float>& dead_zone = {}) {
  const size_t count = in.y.size();
  const int64_t num_thresholds = static_cast<int64_t>(in.thresholds.size());
  std::vector<int16_t> symbols(count);
  std::vector<uint8_t> indexes(count);
  std::vector<float> y_hat(count);
  CHECK(entropy::quantize_group(
            {in.y.data(), in.mean.data(), in.raw_scale.data(), in.thresholds.data(),
             dead_zone.empty() ? nullptr : dead_zone.data(), symbols.data(), indexes.data(),
             y_hat.data(), static_cast<int64_t>(count), num_thresholds, skip_below}) ==
        expected_bits);

  const Device<float> y(in.y), mean(in.mean), raw_scale(in.raw_scale), thresholds(in.thresholds);
  const Device<float> device_dead_zone(dead_zone);
  const Device<int16_t> device_symbols(count);
  const Device<uint8_t> device_indexes(count);
  const Device<float> device_y_hat(count);
  const Device<uint32_t> non_finite(1);
  groupedmixer::clear_device_word(non_finite.data(), nullptr);
  entropy::launch_quantize_group({y.data(), mean.data(), raw_scale.data(), thresholds.data(),
                                  dead_zone.empty() ? nullptr : device_dead_zone.data(),
                                  device_symbols.data(), device_indexes.data(), device_y_hat.data(),
                                  static_cast<int64_t>(count), num_thresholds, skip_below},
                                 non_finite.data(), nullptr);
  CHECK(device_symbols == symbols);
  CHECK(device_indexes == indexes);
  CHECK(groupedmixer::read_device_word(non_finite.data(), nullptr) == expected_bits);
  // A sum that is not a number has no agreed bits; callers refuse it.
  if (expected_bits == 0) CHECK(device_y_hat == y_hat);
}

void check_scale_indexes(const Symbols& in, uint32_t expected_bits) {
  const size_t count = in.y.size();
  const int64_t num_thresholds = static_cast<int64_t>(in.thresholds.size());
  std::vector<uint8_t> indexes(count);
  CHECK(entropy::scale_indexes({in.raw_scale.data(), in.mean.data(), in.thresholds.data(),
                                indexes.data(), static_cast<int64_t>(count), num_thresholds}) ==
        expected_bits);

  const Device<float> mean(in.mean), raw_scale(in.raw_scale), thresholds(in.thresholds);
  const Device<uint8_t> device_indexes(count);
  const Device<uint32_t> non_finite(1);
  groupedmixer::clear_device_word(non_finite.data(), nullptr);
  entropy::launch_scale_indexes(
      {raw_scale.data(), mean.data(), thresholds.data(), device_indexes.data(),
       static_cast<int64_t>(count), num_thresholds},
      non_finite.data(), nullptr);
  CHECK(device_indexes == indexes);
  CHECK(groupedmixer::read_device_word(non_finite.data(), nullptr) == expected_bits);
}

void check_dequantize_group(Random& random, const std::vector<float>& mean) {
  const int64_t count = static_cast<int64_t>(mean.size());
  std::vector<int16_t> symbols;
  for (int64_t i = 0; i < count; ++i) {
    symbols.push_back(static_cast<int16_t>(uniform(random, -32768, 32767)));
  }
  std::vector<float> y_hat(mean.size());
  entropy::dequantize_group({symbols.data(), mean.data(), y_hat.data(), count});

  const Device<int16_t> device_symbols(symbols);
  const Device<float> device_mean(mean), device_y_hat(mean.size());
  entropy::launch_dequantize_group(
      {device_symbols.data(), device_mean.data(), device_y_hat.data(), count}, nullptr);
  CHECK(device_y_hat == y_hat);
}

void test_symbols(Random& random) {
  for (const int count : {0, 1, 31, 255, 256, 257, 1000}) {
    for (const int num_thresholds : {0, 1, 63, 255}) {
      const Symbols in = random_symbols(random, count, num_thresholds);
      for (const int skip_below : {0, 1, num_thresholds / 2, num_thresholds, num_thresholds + 1}) {
        check_quantize_group(in, skip_below, 0);
        check_quantize_group(in, skip_below, 0, random_dead_zone(num_thresholds + 1));
      }
      check_scale_indexes(in, 0);
      check_dequantize_group(random, in.mean);
    }
  }

  // More elements than the grid has threads.
  constexpr int kManyElements = 4096 * 256 + 77;
  const Symbols many = random_symbols(random, kManyElements, 2);
  check_quantize_group(many, 1, 0);
  check_scale_indexes(many, 0);
  check_dequantize_group(random, many.mean);

  for (const float bad : {kInfinity, -kInfinity, kNan, -kNan}) {
    for (uint32_t bits = 1; bits < 8; ++bits) {
      Symbols in = random_symbols(random, 300, 63);
      const auto spoil = [&](uint32_t bit, std::vector<float>* values) {
        if ((bits & bit) != 0) (*values)[static_cast<size_t>(uniform(random, 0, 299))] = bad;
      };
      spoil(entropy::kNonFiniteY, &in.y);
      spoil(entropy::kNonFiniteMean, &in.mean);
      spoil(entropy::kNonFiniteRawScale, &in.raw_scale);
      check_quantize_group(in, 5, bits);
      check_scale_indexes(in, bits & ~static_cast<uint32_t>(entropy::kNonFiniteY));
    }
  }
}

// ---- entropy/symbols_cuda.cu: a group of a latent's tiles ---------------------------------------

// Where the patches of each token lie in a latent whose tiles stand side by side.
std::vector<int32_t> positions_of(const TileSet& set, int patch, int latent_width) {
  std::vector<int32_t> positions(static_cast<size_t>(set.tokens), -1);
  int left = 0;
  for (int i = 0; i < set.count; ++i) {
    const groupedmixer::TileSpan& tile = set.tiles[i];
    for (int row = 0; row < tile.height; ++row) {
      for (int column = 0; column < tile.width; ++column) {
        positions[static_cast<size_t>(tile.first + row * tile.width + column)] =
            row * patch * latent_width + left + column * patch;
      }
    }
    left += patch * tile.width;
  }
  return positions;
}

void check_quantize_tiles(Random& random, const TileSet& set, int channels, int skip_below) {
  constexpr int kPatch = 2, kSlices = 3;
  constexpr uint32_t kFailure = groupedmixer::latent_failure(7);
  const int latent_channels = kSlices * channels;
  int latent_width = 0, latent_height = 0;
  for (int i = 0; i < set.count; ++i) {
    latent_width += kPatch * set.tiles[i].width;
    latent_height = std::max(latent_height, kPatch * set.tiles[i].height);
  }
  const std::vector<int32_t> positions = positions_of(set, kPatch, latent_width);
  const int64_t row_phase = uniform(random, 0, kPatch - 1), slice = uniform(random, 0, kSlices - 1);
  const int64_t column_phase = uniform(random, 0, kPatch - 1);
  const int count = set.tokens * channels;
  std::vector<float> y = noise(random, latent_height * latent_width * latent_channels, 20.0f);
  const auto place = [&](int i) {
    const int64_t position = positions[static_cast<size_t>(i / channels)];
    return static_cast<size_t>((position + row_phase * latent_width + column_phase) *
                                   latent_channels +
                               slice * channels + i % channels);
  };

  // What the CPU makes of the group, gathered. What belongs to no token is NaN here.
  Symbols in = random_symbols(random, count, 9);
  std::vector<int16_t> symbols(static_cast<size_t>(count));
  std::vector<uint8_t> indexes(static_cast<size_t>(count));
  std::vector<float> y_hat(static_cast<size_t>(count));
  std::vector<uint32_t> failures(static_cast<size_t>(set.count), groupedmixer::kNoTileFailure);
  const int spoiled = uniform(random, 0, 2) == 0 ? uniform(random, 0, set.count - 1) : -1;
  for (int i = 0; i < count; ++i) {
    if (positions[static_cast<size_t>(i / channels)] >= 0)
      y[place(i)] = in.y[static_cast<size_t>(i)];
  }
  const std::vector<float> dead_zone = random_dead_zone(10);
  entropy::quantize_group({in.y.data(), in.mean.data(), in.raw_scale.data(), in.thresholds.data(),
                           dead_zone.data(), symbols.data(), indexes.data(), y_hat.data(), count, 9,
                           skip_below});
  for (int i = 0; i < count; ++i) {
    if (positions[static_cast<size_t>(i / channels)] >= 0) continue;
    symbols[static_cast<size_t>(i)] = 0;
    y_hat[static_cast<size_t>(i)] = 0.0f;
    in.mean[static_cast<size_t>(i)] = kNan;
  }
  if (spoiled >= 0) {
    const groupedmixer::TileSpan& tile = set.tiles[spoiled];
    const int first = tile.first * channels, size = tile.tokens() * channels;
    y[place(first + uniform(random, 0, size - 1))] = uniform(random, 0, 1) ? kNan : -kInfinity;
    failures[static_cast<size_t>(spoiled)] = kFailure;
  }

  const Device<float> device_y(y), mean(in.mean), zone(dead_zone), device_y_hat(y_hat.size());
  const Device<int32_t> position(positions);
  const Device<uint8_t> device_indexes(indexes);
  const Device<int16_t> device_symbols(symbols.size());
  const Device<uint32_t> device_failures(
      std::vector<uint32_t>(static_cast<size_t>(set.count), groupedmixer::kNoTileFailure));
  entropy::launch_quantize_tiles(
      {device_y.data(), latent_width, latent_channels, row_phase, column_phase, slice, set,
       position.data(), mean.data(), device_indexes.data(), zone.data(), channels, skip_below,
       device_symbols.data(), device_y_hat.data(), device_failures.data(), kFailure},
      nullptr);
  CHECK(device_failures == failures);
  if (spoiled >= 0) return;  // what NaN becomes is nobody's business
  CHECK(device_symbols == symbols);
  CHECK(device_y_hat == y_hat);
}

// Tiles of odd sizes, 1 .. `most` of them.
TileSet random_tiles(Random& random, int most, int longest) {
  TileSet set;
  for (int count = uniform(random, 1, most); set.count < count;) {
    set.add(uniform(random, 1, longest), uniform(random, 1, longest));
  }
  return set;
}

void test_quantize_tiles(Random& random) {
  for (int i = 0; i < 30; ++i) {
    check_quantize_tiles(random, random_tiles(random, 4, 7), uniform(random, 1, 9),
                         entropy::one_of(random, {0, 1, 4, 10}));
  }
}

// ---- entropy/rans_cuda.cu, entropy/rans_encode_cuda.cu ------------------------------------------

// What a GPU has of a latent to code: arrays over tokens, [G, T, C], and the same as groups.
struct CoderCase {
  TileSet set;
  int channels, skip_below;
  std::vector<std::vector<entropy::Group>> groups;  // [tiles, G]
  entropy::Group hyper;                             // the first of the first tile; may be empty
  std::vector<int16_t> symbols;
  std::vector<uint8_t> indexes;  // 255 where there is no tile

  int group_size() const { return set.tokens * channels; }
  int num_groups() const { return static_cast<int>(groups[0].size()); }
  std::vector<entropy::Group> stream(int tile) const {
    std::vector<entropy::Group> all = groups[static_cast<size_t>(tile)];
    if (tile == 0 && !hyper.symbols.empty()) all.insert(all.begin(), hyper);
    return all;
  }
};

// Values of the kind, and among them some of other kinds.
int16_t value_of(Random& random, const entropy::Tables& tables, int index,
                 entropy::Content content) {
  if (content == entropy::Content::kMixed) {
    content = (random() & 15) == 0 ? entropy::Content::kEscapes : entropy::Content::kLikely;
  }
  return static_cast<int16_t>(entropy::random_value(random, tables, tables.table(index), content));
}

CoderCase random_case(Random& random, const TileSet& set, int channels, int num_groups,
                      int skip_below, entropy::Content content, const entropy::Tables& tables,
                      int hyper_positions, const entropy::Tables& hyper_tables) {
  CoderCase c{set, channels, skip_below, {}, {}, {}, {}};
  const auto all = static_cast<size_t>(num_groups * c.group_size());
  c.symbols.assign(all, 12345);
  c.indexes.assign(all, 255);
  const int num_tables = static_cast<int>(tables.size());
  c.groups.resize(static_cast<size_t>(set.count));
  for (int i = 0; i < set.count; ++i) {
    for (int g = 0; g < num_groups; ++g) {
      entropy::Group group{&tables, {}, {}, skip_below, true};
      const int begin = g * c.group_size() + set.tiles[i].first * channels;
      // Every now and then a group of which nothing is coded, or little.
      const int rare = uniform(random, 0, 3) == 0 && skip_below > 0 ? 500 : 1;
      for (int j = 0; j < set.tiles[i].tokens() * channels; ++j) {
        int index = uniform(random, 0, num_tables - 1);
        if (rare > 1 && uniform(random, 1, rare) > 1) index = uniform(random, 0, skip_below - 1);
        const int16_t value = value_of(random, tables, index, content);
        group.indexes.push_back(static_cast<uint16_t>(index));
        group.symbols.push_back(index < skip_below ? int16_t{0} : value);
        c.indexes[static_cast<size_t>(begin + j)] = static_cast<uint8_t>(index);
        c.symbols[static_cast<size_t>(begin + j)] = group.symbols.back();
      }
      c.groups[static_cast<size_t>(i)].push_back(group);
    }
  }
  c.hyper.tables = &hyper_tables;
  for (int i = 0; i < hyper_positions * static_cast<int>(hyper_tables.size()); ++i) {
    const int index = i % static_cast<int>(hyper_tables.size());
    c.hyper.indexes.push_back(static_cast<uint16_t>(index));
    c.hyper.symbols.push_back(value_of(random, hyper_tables, index, content));
  }
  return c;
}

// What the host makes of a stream: its symbols, or the words of the error that it led to.
struct Decoded {
  std::vector<entropy::Group> groups;
  std::string verdict;  // "": none
};

Decoded decode_on_host(const std::vector<uint8_t>& stream,
                       const std::vector<entropy::Group>& like) {
  try {
    return {entropy::decode(stream, like), ""};
  } catch (const entropy::StreamError& error) {
    return {{}, error.what()};
  }
}

std::string verdict(const entropy::RansCursor& cursor) {
  try {
    entropy::check_finished(cursor);
  } catch (const entropy::StreamError& error) {
    return error.what();
  }
  return "";
}

// Decodes all streams, side by side, and compares what becomes of each with what the host says, in
// symbols or in words. Returns the words.
std::set<std::string> check_decode(Random& random, const CoderCase& c,
                                   const std::vector<std::vector<uint8_t>>& streams,
                                   const entropy::DeviceTableSet& tables,
                                   const entropy::DeviceTableSet& hyper_tables) {
  std::vector<uint8_t> bytes(static_cast<size_t>(uniform(random, 0, 5)));
  std::vector<entropy::RansCursor> begin;
  for (const std::vector<uint8_t>& stream : streams) {
    begin.push_back(
        entropy::make_cursor(entropy::parse_header(stream.data(), stream.size()), bytes.size()));
    bytes.insert(bytes.end(), stream.begin(), stream.end());
  }
  const Device<uint8_t> data(bytes);
  const Device<entropy::RansCursor> cursors(begin);
  std::vector<Decoded> expected;
  for (int i = 0; i < c.set.count; ++i) {
    expected.push_back(decode_on_host(streams[static_cast<size_t>(i)], c.stream(i)));
  }

  if (!c.hyper.symbols.empty()) {
    const Device<int16_t> symbols(c.hyper.symbols.size());
    entropy::launch_rans_channel_decode(
        {data.data(), cursors.data(), hyper_tables.view(), symbols.data(),
         static_cast<int32_t>(c.hyper.symbols.size())},
        nullptr);
    if (expected[0].verdict.empty()) CHECK(symbols == expected[0].groups[0].symbols);
  }
  const auto group_size = static_cast<size_t>(c.group_size());
  for (int g = 0; g < c.num_groups(); ++g) {
    const size_t at = static_cast<size_t>(g) * group_size;
    const Device<uint8_t> indexes({c.indexes.begin() + static_cast<int64_t>(at),
                                   c.indexes.begin() + static_cast<int64_t>(at + group_size)});
    std::vector<float> mean_values = noise(random, c.group_size(), 9.0f);
    for (float& value : mean_values) value = uniform(random, 0, 9) == 0 ? -0.0f : value;
    const Device<float> mean(mean_values), y_hat(group_size);
    entropy::launch_rans_group_decode({data.data(), cursors.data(), c.set, c.channels, c.skip_below,
                                       tables.view(), indexes.data(), mean.data(), y_hat.data()},
                                      nullptr);
    const Device<float> untouched(group_size);
    std::vector<float> wanted(untouched.data(), untouched.data() + group_size);
    for (int i = 0; i < c.set.count; ++i) {
      const int first = c.set.tiles[i].first * c.channels;
      const int size = c.set.tiles[i].tokens() * c.channels;
      const Decoded& one = expected[static_cast<size_t>(i)];
      if (one.verdict.empty()) {
        const size_t ahead = one.groups.size() - static_cast<size_t>(c.num_groups());
        entropy::dequantize_group({one.groups[ahead + static_cast<size_t>(g)].symbols.data(),
                                   mean_values.data() + first, wanted.data() + first, size});
      } else {
        std::copy(y_hat.data() + first, y_hat.data() + first + size, wanted.data() + first);
      }
    }
    CHECK(y_hat == wanted);
  }
  std::set<std::string> verdicts;
  for (int i = 0; i < c.set.count; ++i) {
    CHECK(verdict(cursors.data()[i]) == expected[static_cast<size_t>(i)].verdict);
    verdicts.insert(expected[static_cast<size_t>(i)].verdict);
  }
  return verdicts;
}

// Encodes all streams, side by side. Returns the numbers of lanes.
std::set<uint32_t> check_encode(const CoderCase& c, const entropy::DeviceTableSet& tables,
                                const entropy::DeviceTableSet& hyper_tables) {
  const Device<int16_t> symbols(c.symbols), hyper_symbols(c.hyper.symbols);
  const Device<uint8_t> indexes(c.indexes);
  const auto streams = static_cast<size_t>(c.set.count);
  const auto groups = static_cast<size_t>(c.num_groups());
  const auto hyper_count = static_cast<int32_t>(c.hyper.symbols.size());
  const auto capacity =
      static_cast<size_t>(entropy::encode_capacity(c.set, c.channels, c.num_groups(), hyper_count));
  const Device<entropy::RansCounts> counts(streams);
  const Device<uint32_t> coded(streams * (1 + groups));
  const Device<entropy::RansEncodedStream> encoded(streams);
  const Device<uint16_t> words(capacity);
  const Device<uint8_t> escapes(capacity * entropy::kMaxEscapeBytes);
  entropy::launch_rans_encode(
      {c.set, c.channels, static_cast<int32_t>(groups), c.skip_below, tables.view(), symbols.data(),
       indexes.data(), hyper_count, hyper_tables.view(), hyper_symbols.data(), counts.data(),
       coded.data(), encoded.data(), words.data(), escapes.data()},
      nullptr);
  std::set<uint32_t> lanes;
  for (int i = 0; i < c.set.count; ++i) {
    entropy::Encoder encoder;
    for (const entropy::Group& group : c.stream(i)) entropy::push(encoder, group);
    const entropy::RansEncodedStream& out = encoded.data()[i];
    CHECK(out.coded == encoder.num_coded() && out.escaped == encoder.num_escaped());
    CHECK(entropy::assemble_stream(out, words.data() + out.first_word,
                                   escapes.data() + out.first_escape) == encoder.finish(0));
    lanes.insert(out.lanes);
  }
  return lanes;
}

// The stream with words or escapes missing, changed or added, in one of nine ways.
std::vector<uint8_t> damaged(Random& random, const std::vector<uint8_t>& stream, int kind) {
  entropy::StreamHeader header = entropy::parse_header(stream.data(), stream.size());
  const auto at = [&](size_t place) { return stream.begin() + static_cast<int64_t>(place); };
  std::vector<uint8_t> words(at(header.words), at(header.escapes));
  std::vector<uint8_t> escapes(at(header.escapes), stream.end());
  const auto some = [&](size_t count) {
    return static_cast<size_t>(uniform(random, 0, static_cast<int>(std::min<size_t>(count, 70))));
  };
  const auto any = [&](std::vector<uint8_t>& bytes) -> uint8_t& {
    return bytes[static_cast<size_t>(uniform(random, 0, static_cast<int>(bytes.size()) - 1))];
  };
  if (kind == 0) words.resize(words.size() - some(words.size()) / 2 * 2);
  if (kind == 1) escapes.resize(escapes.size() - some(escapes.size()));
  if (kind == 2) words.resize(words.size() + 2 * some(3));
  if (kind == 3) escapes.resize(escapes.size() + some(3));
  if (kind == 4 && !words.empty()) any(words) ^= static_cast<uint8_t>(1 << uniform(random, 0, 7));
  if (kind >= 5 && kind <= 7 && !escapes.empty()) {
    for (int i = uniform(random, 1, 2); i > 0; --i) {
      any(escapes) = entropy::one_of<uint8_t>(random, {0x00, 0x80, 0xff, 0x7f});
    }
  }
  if (kind == 7) header.states[static_cast<size_t>(uniform(random, 0, header.lanes - 1))] ^= 1;
  if (kind == 8) {  // both in the first round
    words.clear();
    std::fill(escapes.begin(), escapes.end(), uint8_t{0xff});
  }
  std::vector<uint8_t> out =
      entropy::make_header(header.lanes, header.states.data(), escapes.size());
  out.insert(out.end(), words.begin(), words.end());
  out.insert(out.end(), escapes.begin(), escapes.end());
  return out;
}

std::vector<std::vector<uint8_t>> host_streams(const CoderCase& c, int lanes) {
  std::vector<std::vector<uint8_t>> streams;
  for (int i = 0; i < c.set.count; ++i) streams.push_back(entropy::encode(c.stream(i), lanes));
  return streams;
}

// A group with an index that has no table.
void check_missing_table(Random& random, CoderCase c, const entropy::DeviceTableSet& tables) {
  c.set.count = 1;
  const std::vector<uint8_t> stream = host_streams(c, 0)[0];
  const Device<uint8_t> data(stream);
  const Device<entropy::RansCursor> cursor(std::vector<entropy::RansCursor>{
      entropy::make_cursor(entropy::parse_header(stream.data(), stream.size()), 0)});
  const int last = c.set.tiles[0].tokens() * c.channels - 1;
  c.indexes[static_cast<size_t>(uniform(random, 0, last))] =
      static_cast<uint8_t>(tables.view().size);
  const Device<uint8_t> indexes(c.indexes);
  const std::vector<float> zeros(static_cast<size_t>(c.group_size()));
  const Device<float> mean(zeros), y_hat(zeros);
  entropy::launch_rans_group_decode({data.data(), cursor.data(), c.set, c.channels, c.skip_below,
                                     tables.view(), indexes.data(), mean.data(), y_hat.data()},
                                    nullptr);
  CHECK(cursor.data()->fault == entropy::RansFault::kIndex);
  bool refused = false;
  try {
    entropy::check_fault(*cursor.data());
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

void check_cursor_limits() {
  entropy::StreamHeader header{};
  header.lanes = 1;
  header.words = header.escapes = header.end = 6;
  entropy::make_cursor(header, entropy::kMaxStreamData - 6);
  for (const uint64_t offset : {entropy::kMaxStreamData - 5, ~uint64_t{0}}) {
    bool refused = false;
    try {
      entropy::make_cursor(header, offset);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

TileSet tiles_of(std::initializer_list<std::pair<int, int>> sizes) {
  TileSet set;
  for (const auto& [height, width] : sizes) set.add(height, width);
  return set;
}

void test_rans(Random& random) {
  using entropy::Content;
  check_cursor_limits();
  // Few, with a table of two slots, one of the widest and one that decode entries name all of.
  std::vector<uint16_t> counts = {4095, 1, 100, 900, 2000, 900, 100, 96};
  counts.insert(counts.end(), 4096, 1);
  const entropy::Tables tables = entropy::make_tables(counts, {2, 6, 4096}, {7, -2, -300});
  const entropy::Tables many = entropy::random_tables(random, 20);
  const entropy::Tables hyper_tables = entropy::random_tables(random, 270);
  const entropy::DeviceTableSet device_tables(tables), device_many(many),
      device_hyper(hyper_tables);
  std::set<uint32_t> lanes;
  std::set<std::string> verdicts;

  const Content contents[] = {Content::kLikely, Content::kEscapes, Content::kMixed,
                              Content::kAnyValue};
  for (const int skip_below : {0, 1, 3}) {
    for (const Content content : contents) {
      const bool small = uniform(random, 0, 1) == 0;
      const TileSet set = small ? random_tiles(random, 4, 6) : tiles_of({{5, 7}, {1, 1}, {19, 11}});
      const CoderCase c =
          random_case(random, set, uniform(random, 1, 7), uniform(random, 1, 4), skip_below,
                      content, tables, uniform(random, 0, 5), hyper_tables);
      lanes.merge(check_encode(c, device_tables, device_hyper));
      for (const int stream_lanes : {1, 4, 8, 16, 32}) {
        const auto found =
            check_decode(random, c, host_streams(c, stream_lanes), device_tables, device_hyper);
        CHECK(found == std::set<std::string>{""});
      }
    }
  }
  // Nothing but a little, and enough for all numbers of lanes.
  for (const int channels : {1, 6, 12, 25, 60}) {
    const CoderCase c = random_case(random, tiles_of({{8, 8}, {3, 25}}), channels, 2, 0,
                                    Content::kEscapes, tables, 0, hyper_tables);
    lanes.merge(check_encode(c, device_tables, device_hyper));
    check_decode(random, c, host_streams(c, 0), device_tables, device_hyper);
  }
  CHECK((lanes == std::set<uint32_t>{1, 4, 8, 16, 32}));

  // A damaged stream is judged like on the host, and its neighbours do not notice.
  for (int i = 0; i < 270; ++i) {
    const CoderCase c =
        random_case(random, tiles_of({{1, 3}, {5, 7}, {2, 2}}), 3, 2, uniform(random, 0, 2),
                    entropy::one_of(random, {Content::kMixed, Content::kEscapes}),
                    uniform(random, 0, 1) ? tables : many, 0, hyper_tables);
    const auto& device = c.groups[0][0].tables == &tables ? device_tables : device_many;
    std::vector<std::vector<uint8_t>> streams =
        host_streams(c, entropy::one_of(random, {1, 4, 8, 16, 32}));
    streams[1] = damaged(random, streams[1], i % 9);
    verdicts.merge(check_decode(random, c, streams, device, device_hyper));
    if (i < 5) check_missing_table(random, c, device);
  }
  for (const char* part : {"ends before its last symbol", "is cut short", "not in shortest form",
                           "at most 3 bytes", "must lie in int16", "of words are left over",
                           "of escapes are left over", "must end at 65536"}) {
    CHECK(std::any_of(verdicts.begin(), verdicts.end(), [&](const std::string& text) {
      return text.find(part) != std::string::npos;
    }));
  }
}

// ---- common/crc32_cuda.cu -----------------------------------------------------------------------

void check_checksums(Random& random, const TileSet& set, int channels, int groups) {
  const int group_size = set.tokens * channels;
  std::vector<float> y_hat = noise(random, groups * group_size, 3.0f);
  for (float& value : y_hat) {
    if (uniform(random, 0, 9) == 0) value = uniform(random, 0, 1) == 0 ? -0.0f : 0.0f;
  }
  std::vector<uint32_t> expected;
  for (int i = 0; i < set.count; ++i) {
    uint32_t crc = 0;
    for (int g = 0; g < groups; ++g) {
      for (int j = 0; j < set.tiles[i].tokens() * channels; ++j) {
        const int at = g * group_size + set.tiles[i].first * channels + j;
        const float value = y_hat[static_cast<size_t>(at)] + 0.0f;
        crc = groupedmixer::crc32(crc, &value, sizeof(value));
      }
    }
    expected.push_back(crc);
  }
  const Device<float> device_y_hat(y_hat);
  const Device<uint32_t> checksums(expected.size());
  groupedmixer::launch_tile_checksums(
      {device_y_hat.data(), set, channels, groups, checksums.data()}, nullptr);
  CHECK(checksums == expected);
}

void test_checksums(Random& random) {
  for (const int size : {1, 2, 255, 256, 257, 2047, 2048, 2049, 4096, 5001}) {
    check_checksums(random, tiles_of({{1, size}}), 1, 1);
  }
  for (int i = 0; i < 20; ++i) {
    check_checksums(random, random_tiles(random, 4, 9), uniform(random, 1, 9),
                    uniform(random, 1, 12));
  }
}

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    Random random(1);
    test_symbols(random);
    test_quantize_tiles(random);
    test_rans(random);
    test_checksums(random);
  }
  std::puts("passed");
}
