// SPDX-License-Identifier: MIT
//
// The coder: round trips of what is special, wrong arguments, and every error of a stream.
// fuzz_rans.cpp does the rest.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "entropy/rans.h"
#include "entropy/stream_error.h"
#include "rans_cases.h"
#include "testing.h"

using namespace groupedmixer::entropy;

// Allocations that succeed before one fails; below 0: all do.
static int allocations_left = -1;

void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

template <typename Error>
bool throws(const std::function<void()>& action, const std::string& part) {
  try {
    action();
  } catch (const Error& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return true;
    std::fprintf(stderr, "expected '%s' in: %s\n", part.c_str(), error.what());
  }
  return false;
}

// Symbols of the first table.
Group group_of(const Tables& tables, const std::vector<int16_t>& symbols) {
  Group group;
  group.tables = &tables;
  group.symbols = symbols;
  group.indexes.resize(symbols.size(), 0);
  return group;
}

constexpr int kAllLanes[] = {0, 1, 4, 8, 16, 32};

void check_round_trips(const std::vector<Group>& groups) {
  for (const int lanes : kAllLanes) {
    CHECK(same_symbols(decode(encode(groups, lanes), groups), groups));
  }
}

// The example of docs/bitstream.md.
void test_worked_example() {
  const Tables tables = make_tables({1024, 2048, 512, 512}, {4}, {-1});
  const std::vector<Group> groups = {group_of(tables, {0, -1, 5, 1, -3, 1, 1})};
  const std::vector<uint8_t> expected = {0x00, 0x02, 0xdb, 0x04, 0x04,
                                         0x00, 0x00, 0xee, 0x06, 0x03};
  CHECK(encode(groups, 1) == expected);
  CHECK(same_symbols(decode(expected, groups), groups));
}

void test_round_trips() {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const Tables tables = random_tables(random, 8);
    std::vector<Group> groups;
    for (const int largest : {70, 2000, 70, 70}) {
      const int count = uniform(random, 0, largest);
      groups.push_back(random_group(random, tables, count));
    }
    check_round_trips(groups);
  }
}

// Every number of symbols about the whole rounds of any number of lanes, in indexes of both widths.
void test_every_small_count() {
  Random random(2);
  const Tables tables = random_tables(random, 5);
  for (int count = 0; count <= 100; ++count) {
    Group group = random_group(random, tables, count);
    for (const bool bytes : {false, true}) {
      group.bytes = bytes;
      check_round_trips({group});
      check_round_trips({group, group});
    }
  }
}

void test_every_count() {
  // Two slots with counts (c, kTotal - c), for all c: reciprocals, renormalisation at each
  // threshold.
  Random random(3);
  for (uint32_t count = 1; count < kTotal; ++count) {
    const Tables tables = make_tables(
        {static_cast<uint16_t>(count), static_cast<uint16_t>(kTotal - count)}, {2}, {0});
    std::vector<int16_t> symbols(40);
    for (int16_t& symbol : symbols) symbol = static_cast<int16_t>(uniform(random, 0, 1));
    for (const int lanes : {1, 16}) {
      const std::vector<Group> groups = {group_of(tables, symbols)};
      CHECK(same_symbols(decode(encode(groups, lanes), groups), groups));
    }
  }
}

void test_every_value_escapes() {
  const Tables tables = make_tables({4095, 1}, {2}, {-7});
  std::vector<int16_t> symbols;
  for (int value = -32768; value <= 32767; ++value) {
    symbols.push_back(static_cast<int16_t>(value == -7 ? -8 : value));
  }
  const std::vector<Group> groups = {group_of(tables, symbols)};
  check_round_trips(groups);
  Encoder encoder;
  push(encoder, groups[0]);
  // Distances below 2^6 take a byte on either side, those below 2^13 two; -8 comes twice.
  const int one = 2 * 64 + 1, two = 2 * (8192 - 64), three = 65536 - one - two;
  CHECK(encoder.num_escaped() == 65536);
  CHECK(encoder.estimated_bits() == 12.0 * 65536 + 8.0 * (one + 2 * two + 3 * three));
}

// The longest costs there are, of more symbols than add up to 2^32 in each of 16 sums.
void test_costs_of_a_large_group() {
  const Tables tables = make_tables(std::vector<uint16_t>(kTotal, 1), {4096}, {-2048});
  std::vector<int16_t> symbols(150000);
  Random random(5);
  for (int16_t& symbol : symbols) symbol = static_cast<int16_t>(uniform(random, -2048, 2046));
  Encoder encoder;
  push(encoder, group_of(tables, symbols));
  CHECK(encoder.estimated_bits() == 12.0 * 150000);
}

// Every value of a table with more of them than a decode entry can name, as far as they go.
void test_far_values() {
  for (const int heavy : {0, 300, 900}) {
    std::vector<uint16_t> counts(902, 1);  // 901 values
    counts[static_cast<size_t>(heavy)] = static_cast<uint16_t>(kTotal - 901);
    for (const int offset : {-32768, -450, 32767 - 900}) {
      const Tables tables = make_tables(counts, {902}, {offset});
      std::vector<int16_t> symbols;
      for (int repeat = 0; repeat < 4; ++repeat) {  // more than a kernel notes at once
        for (int slot = 0; slot < 901; ++slot) {
          symbols.push_back(static_cast<int16_t>(offset + slot));
        }
      }
      check_round_trips({group_of(tables, symbols)});
    }
  }
}

// 256 tables are all that a byte can name, so nothing has to be checked; 257 are more.
void test_tables_about_the_indexes_width() {
  Random random(4);
  for (const int size : {255, 256, 257}) {
    const Tables tables = random_tables(random, size);
    Group group = random_group(random, tables, 500);
    group.skip_below = 0;
    group.bytes = true;
    for (uint16_t& index : group.indexes) index = static_cast<uint16_t>(index & 0xff) % size;
    for (size_t i = 0; i < group.indexes.size(); ++i) {
      const Table& table = tables.table(group.indexes[i]);
      const Content content = i % 7 == 0 ? Content::kEscapes : Content::kAnyValue;
      group.symbols[i] = static_cast<int16_t>(random_value(random, tables, table, content));
    }
    check_round_trips({group});
    group.bytes = false;
    check_round_trips({group});
  }
}

void test_wrong_arguments() {
  using Wrong = std::invalid_argument;
  CHECK(throws<Wrong>([] { make_tables({}, {}, {}); }, "sizes must name 1"));
  CHECK(throws<Wrong>([] { make_tables({4096}, {1}, {0}); }, "sizes must be 2 .. 4096, got 1"));
  CHECK(throws<Wrong>([] { make_tables({4095, 1}, {3}, {0}); }, "sum(sizes) = 3 elements, got 2"));
  CHECK(throws<Wrong>([] { make_tables({4095, 2}, {2}, {0}); }, "sum to 4096, got 4097"));
  CHECK(throws<Wrong>([] { make_tables({4096, 0}, {2}, {0}); }, "at least 1, got 0 at slot 1"));
  CHECK(throws<Wrong>([] { make_tables({4095, 1}, {2}, {32768}); }, "int16, got 32768"));
  CHECK(throws<Wrong>([] { make_tables({4095, 1}, {2}, {-32769}); }, "int16, got -32769"));

  const Tables tables = make_tables({4095, 1}, {2}, {0});
  Encoder encoder;
  const int16_t symbol = 1;
  const uint8_t indexes[2] = {0, 1};
  CHECK(
      throws<Wrong>([&] { encoder.push(&symbol, indexes, 1, tables, 1); }, "got 1 at position 0"));
  CHECK(throws<Wrong>([&] { encoder.push(&symbol, indexes + 1, 1, tables, 0); }, "below 1"));
  CHECK(throws<Wrong>([&] { encoder.push(&symbol, indexes, 1, tables, 2); }, "skip_below"));
  CHECK(throws<Wrong>([&] { encoder.finish(2); }, "lanes must be"));
  CHECK(encoder.estimated_bits() == 0.0);
  CHECK(encoder.finish(0).size() == 6);
}

// A push() that runs out of memory, wherever it does, leaves the encoder as it was.
void test_push_without_memory() {
  const Tables tables = make_tables({4095, 1}, {2}, {0});
  const std::vector<int16_t> symbols(300, 1000);  // escapes, which grow the encoder's third array
  const std::vector<uint8_t> indexes(symbols.size(), 0);
  int failures = 0;
  for (bool done = false; !done; ++failures) {
    Encoder encoder;
    encoder.push(symbols.data(), indexes.data(), 3, tables, 0);
    const std::vector<uint8_t> before = encoder.finish(1);
    allocations_left = failures;
    try {
      encoder.push(symbols.data(), indexes.data(), 300, tables, 0);
      done = true;
    } catch (const std::bad_alloc&) {
    }
    allocations_left = -1;
    CHECK((encoder.finish(1) == before) == !done);
    CHECK(encoder.num_escaped() == (done ? 303 : 3));
    encoder.push(symbols.data(), indexes.data(), 1, tables, 0);
    CHECK(encoder.num_coded() == (done ? 304 : 4));
  }
  CHECK(failures > 3);
}

void test_broken_streams() {
  const Tables tables = make_tables({4095, 1}, {2}, {0});
  const std::vector<Group> empty;
  const auto rejects = [&](const std::vector<uint8_t>& stream, const std::string& part,
                           const std::vector<Group>& groups) {
    return throws<StreamError>([&] { decode(stream, groups); }, part);
  };
  CHECK(rejects({}, "empty", empty));
  CHECK(rejects({5, 0, 0, 0, 1, 0}, "lane code", empty));
  CHECK(rejects({0}, "the escape length is cut short", empty));
  CHECK(rejects({0, 0x80, 0x00, 0, 0, 1, 0}, "not in shortest form", empty));
  CHECK(rejects({0, 0x80, 0x80, 0x80, 0x80, 0x80, 1}, "at most 5 bytes", empty));
  CHECK(rejects({0, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 1, 0}, "below 2^32", empty));
  CHECK(rejects({0, 0, 0, 0, 1}, "must hold 4 bytes of states", empty));
  CHECK(rejects({0, 9, 0, 0, 1, 0}, "and 9 of escapes", empty));
  CHECK(rejects({0, 0, 0, 0, 1, 0, 7}, "odd number", empty));
  CHECK(rejects({0, 0, 0xff, 0xff, 0, 0}, "at least 65536, got 65535 in lane 0", empty));
  CHECK(rejects({0, 0, 0, 0, 1, 0, 7, 7}, "2 bytes of words are left over", empty));
  CHECK(rejects({0, 1, 0, 0, 1, 0, 7}, "1 bytes of escapes are left over", empty));
  CHECK(rejects({0, 0, 1, 0, 1, 0}, "must end at 65536, got 65537 in lane 0", empty));
  const std::vector<Group> one = {group_of(tables, {0})};
  CHECK(rejects({0, 0, 0, 0, 1, 0}, "ends before its last symbol", one));
  // State 0x1ffff, encoded from 2^16 + ... by the escape, whose single count is the last point.
  CHECK(rejects({0, 0, 0xff, 0xff, 0xff, 0xff}, "escaped value is cut short", one));
  CHECK(rejects({0, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "at most 3 bytes", one));
  CHECK(rejects({0, 2, 0xff, 0xff, 0xff, 0xff, 0x80, 0x00}, "not in shortest form", one));
  CHECK(rejects({0, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, "int16, got -", one));
}

void test_failed_decoder_stays_failed() {
  const Tables tables = make_tables({4095, 1}, {2}, {0});
  const std::vector<uint8_t> stream = Encoder().finish(1);
  const uint8_t index = 0;
  int16_t symbol = 0;
  Decoder failed(stream.data(), stream.size());
  CHECK(throws<StreamError>([&] { failed.pop(&index, 1, tables, 0, &symbol); }, "ends before"));
  CHECK(throws<StreamError>([&] { failed.pop(&index, 0, tables, 0, &symbol); }, "unusable"));
  CHECK(throws<StreamError>([&] { failed.finish(); }, "unusable"));
  Decoder finished(stream.data(), stream.size());
  finished.finish();
  CHECK(throws<StreamError>([&] { finished.pop(&index, 0, tables, 0, &symbol); }, "finished"));
}

}  // namespace

int main() {
  test_worked_example();
  test_round_trips();
  test_every_small_count();
  test_every_count();
  test_every_value_escapes();
  test_costs_of_a_large_group();
  test_far_values();
  test_tables_about_the_indexes_width();
  test_wrong_arguments();
  test_push_without_memory();
  test_broken_streams();
  test_failed_decoder_stays_failed();
  std::puts("passed");
}
