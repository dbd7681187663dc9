// SPDX-License-Identifier: MIT
//
// compressai's coder under sanitizers: round trips, and strings that no encoder wrote. That its
// bytes are compressai's is for the Python tests to say.
//
//   test_compressai_rans [executions]

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "entropy/compressai_rans.h"
#include "entropy/scale_index.h"
#include "entropy/stream_error.h"
#include "rans_cases.h"
#include "testing.h"

using namespace groupedmixer::entropy;

namespace {

constexpr int32_t kTotalCount = 1 << kCompressaiPrecision;

// A row of cdfs: `slots` slots, the last one the escape.
std::vector<int32_t> random_cdf(Random& random, int slots) {
  std::vector<int32_t> cdf = {0};
  for (int left = slots - 1; left > 0; --left) {
    const int room = kTotalCount - cdf.back() - left;  // every slot behind needs one
    const int share = uniform(random, 0, 3) == 0 ? uniform(random, 1, room)
                                                 : uniform(random, 1, 1 + room / (2 * left));
    cdf.push_back(cdf.back() + std::min(share, room));
  }
  cdf.push_back(kTotalCount);
  return cdf;
}

CompressaiTables random_tables(Random& random) {
  std::vector<int> slots = {2, 3, 700};
  for (int i = 0; i < 4; ++i) slots.push_back(uniform(random, 2, 60));
  const int row = 701;
  std::vector<int32_t> cdfs, sizes, offsets;
  for (const int count : slots) {
    std::vector<int32_t> cdf = random_cdf(random, count);
    sizes.push_back(static_cast<int32_t>(cdf.size()));
    offsets.push_back(uniform(random, -40, 10));
    cdf.resize(static_cast<size_t>(row));
    cdfs.insert(cdfs.end(), cdf.begin(), cdf.end());
  }
  return CompressaiTables(cdfs.data(), sizes.data(), offsets.data(),
                          static_cast<int64_t>(slots.size()), row);
}

struct Coded {
  std::vector<int32_t> symbols;
  std::vector<int32_t> indexes;
};

std::vector<Coded> random_groups(Random& random, const CompressaiTables& tables) {
  std::vector<Coded> groups(static_cast<size_t>(uniform(random, 0, 3)));
  for (Coded& group : groups) {
    for (int left = uniform(random, 0, 1) == 0 ? uniform(random, 0, 9) : uniform(random, 0, 300);
         left > 0; --left) {
      const int index = uniform(random, 0, static_cast<int>(tables.size()) - 1);
      const CompressaiTable& table = tables.table(index);
      int32_t value = table.offset + uniform(random, -2, table.num_values + 1);
      // Escapes of all lengths.
      if (uniform(random, 0, 20) == 0) {
        value = uniform(random, -(1 << 29), 1 << 29) >> uniform(random, 0, 28);
      }
      group.symbols.push_back(value);
      group.indexes.push_back(index);
    }
  }
  return groups;
}

std::vector<uint8_t> encode(const std::vector<Coded>& groups, const CompressaiTables& tables,
                            bool bytes) {
  CompressaiEncoder encoder;
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    const auto symbols = exact_copy<int32_t>(group->symbols);
    const auto count = static_cast<int64_t>(group->symbols.size());
    if (bytes) {
      encoder.prepend(symbols.get(), exact_copy<uint8_t>(group->indexes).get(), count, tables);
    } else {
      encoder.prepend(symbols.get(), exact_copy<int32_t>(group->indexes).get(), count, tables);
    }
  }
  encoder.finish();
  return {encoder.data(), encoder.data() + encoder.size()};
}

// Throws StreamError.
std::vector<Coded> decode(const std::vector<uint8_t>& stream, std::vector<Coded> groups,
                          const CompressaiTables& tables, bool bytes) {
  const auto data = exact_copy<uint8_t>(stream);
  CompressaiDecoder decoder(data.get(), stream.size());
  for (Coded& group : groups) {
    const size_t count = group.indexes.size();
    const std::unique_ptr<int32_t[]> symbols(new int32_t[count]);
    if (bytes) {
      decoder.pop(exact_copy<uint8_t>(group.indexes).get(), static_cast<int64_t>(count), tables,
                  symbols.get());
    } else {
      decoder.pop(exact_copy<int32_t>(group.indexes).get(), static_cast<int64_t>(count), tables,
                  symbols.get());
    }
    group.symbols.assign(symbols.get(), symbols.get() + count);
  }
  decoder.finish();
  return groups;
}

bool same(const std::vector<Coded>& a, const std::vector<Coded>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].symbols != b[i].symbols) return false;
  }
  return a.size() == b.size();
}

bool is_rejected(const std::vector<uint8_t>& stream, const std::vector<Coded>& groups,
                 const CompressaiTables& tables) {
  try {
    decode(stream, groups, tables, false);
    return false;
  } catch (const StreamError&) {
    return true;
  }
}

void fuzz(int executions) {
  Random random(7);
  int rejected = 0, accepted = 0;
  for (int done = 0; done < executions; done += 20) {
    const CompressaiTables tables = random_tables(random);
    const std::vector<Coded> groups = random_groups(random, tables);
    const std::vector<uint8_t> stream = encode(groups, tables, true);
    CHECK(stream == encode(groups, tables, false));
    CHECK(same(decode(stream, groups, tables, true), groups));
    CHECK(same(decode(stream, groups, tables, false), groups));
    for (size_t size = 0; size < stream.size() && size < 24; ++size) {
      CHECK(is_rejected({stream.begin(), stream.begin() + static_cast<int64_t>(size)}, groups,
                        tables));
    }
    for (int i = 0; i < 20; ++i) {
      std::vector<uint8_t> damaged = stream;
      if (i % 4 == 0) damaged.resize(static_cast<size_t>(uniform(random, 0, 200)));
      for (int edits = i % 4 == 0 ? static_cast<int>(damaged.size()) : uniform(random, 1, 3);
           edits > 0; --edits) {
        if (damaged.empty()) break;
        const int last = static_cast<int>(damaged.size()) - 1;
        damaged[static_cast<size_t>(uniform(random, 0, last))] = static_cast<uint8_t>(random());
      }
      // The state's bounds are met, so that the hot loop is reached.
      if (damaged.size() >= 8 && i % 2 == 0) damaged[4] |= 1, damaged[7] &= 0x7f;
      ++(is_rejected(damaged, groups, tables) ? rejected : accepted);
    }
  }
  CHECK(rejected > 0 && accepted > 0);
  std::printf("%d damaged strings rejected, %d accepted\n", rejected, accepted);
}

template <typename Action>
bool is_refused(const Action& action, const std::string& part) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find(part) != std::string::npos;
  }
  return false;
}

void test_wrong_indexes() {
  Random random(3);
  const CompressaiTables tables = random_tables(random);
  const int32_t symbol = 0;
  for (const int32_t wrong :
       {-1, static_cast<int32_t>(tables.size()), std::numeric_limits<int32_t>::max(),
        std::numeric_limits<int32_t>::min()}) {
    CHECK(is_refused([&] { CompressaiEncoder().prepend(&symbol, &wrong, 1, tables); }, "indexes"));
    const std::vector<uint8_t> stream = encode({}, tables, true);
    CompressaiDecoder decoder(stream.data(), stream.size());
    int32_t out = 0;
    CHECK(is_refused([&] { decoder.pop(&wrong, 1, tables, &out); }, "indexes"));
  }
}

void test_scale_index() {
  Random random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> thresholds;
    for (int i = uniform(random, 0, 80); i > 0; --i) {
      thresholds.push_back(std::exp(static_cast<float>(uniform(random, -3000, 6000)) * 1e-3f));
    }
    std::sort(thresholds.begin(), thresholds.end());
    thresholds.erase(std::unique(thresholds.begin(), thresholds.end()), thresholds.end());
    const float bound = 0.11f;
    const ScaleIndex index(thresholds.data(), static_cast<int64_t>(thresholds.size()), bound);
    std::vector<float> scales = thresholds;
    for (const float t : thresholds) {
      scales.push_back(std::nextafter(t, 0.0f));
      scales.push_back(std::nextafter(t, 1e9f));
    }
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float odd : {0.0f, -0.0f, -1.0f, infinity, -infinity, 1e-42f, 1e30f,
                            std::numeric_limits<float>::quiet_NaN()}) {
      scales.push_back(odd);
    }
    const auto exact = exact_copy<float>(scales);
    const std::unique_ptr<int32_t[]> found(new int32_t[scales.size()]);
    index(exact.get(), static_cast<int64_t>(scales.size()), found.get());
    for (size_t i = 0; i < scales.size(); ++i) {
      const float scale = scales[i] < bound ? bound : scales[i];
      int32_t expected = 0;
      for (const float t : thresholds) expected += !(scale <= t);
      CHECK(found[i] == expected);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  test_wrong_indexes();
  test_scale_index();
  fuzz(argc > 1 ? std::atoi(argv[1]) : 20000);
  std::puts("passed");
}
