// SPDX-License-Identifier: MIT
//
// The coder under sanitizers: round trips, broken streams, and a fuzz loop that mutates good ones.
// The fuzz loop is deterministic up to where its time budget ends.
//
//   g++ -std=c++17 -g -O1 -fsanitize=address,undefined -Icsrc tests/cpp/test_rans.cpp
//       csrc/entropy/rans.cpp csrc/entropy/tables.cpp -o test_rans && ./test_rans [seconds]

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "entropy/rans.h"
#include "entropy/stream_error.h"
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

int uniform(Random& random, int first, int last) {
  return first + static_cast<int>(random() % static_cast<unsigned>(last - first + 1));
}

Tables make_tables(const std::vector<uint16_t>& counts, const std::vector<int32_t>& sizes,
                   const std::vector<int32_t>& offsets) {
  return Tables(counts.data(), static_cast<int64_t>(counts.size()), sizes.data(), offsets.data(),
                static_cast<int64_t>(sizes.size()));
}

// Tables of all sizes, among them the extremes of the format.
Tables random_tables(Random& random) {
  std::vector<uint16_t> counts;
  std::vector<int32_t> sizes = {2, static_cast<int32_t>(kTotal), 600, 3};
  std::vector<int32_t> offsets = {32767, -2048, 32767 - 598, -32768};
  for (int i = 0; i < 4; ++i) {
    sizes.push_back(uniform(random, 2, 40));
    offsets.push_back(uniform(random, -30, 10));
  }
  for (const int32_t size : sizes) {
    std::vector<uint16_t> shares(static_cast<size_t>(size), 1);
    int left = static_cast<int>(kTotal) - size;
    for (int slot = 0; slot + 1 < size && left > 0; ++slot) {
      const int share = uniform(random, 0, left);
      shares[static_cast<size_t>(slot)] = static_cast<uint16_t>(1 + share);
      left -= share;
    }
    shares.back() = static_cast<uint16_t>(shares.back() + left);
    counts.insert(counts.end(), shares.begin(), shares.end());
  }
  return make_tables(counts, sizes, offsets);
}

struct Group {
  std::vector<int16_t> symbols;
  std::vector<uint16_t> indexes;
};

std::vector<Group> random_groups(Random& random, const Tables& tables, int skip_below) {
  std::vector<Group> groups(static_cast<size_t>(uniform(random, 0, 6)));
  for (Group& group : groups) {
    const int count =
        uniform(random, 0, 1) != 0 ? uniform(random, 0, 70) : uniform(random, 0, 2000);
    for (int i = 0; i < count; ++i) {
      const int index = uniform(random, 0, static_cast<int>(tables.size()) - 1);
      const Table& table = tables.table(index);
      int value = table.offset + uniform(random, 0, table.num_values - 1);
      if (uniform(random, 0, 30) == 0) value = uniform(random, -32768, 32767);
      group.indexes.push_back(static_cast<uint16_t>(index));
      group.symbols.push_back(static_cast<int16_t>(index < skip_below ? 0 : value));
    }
  }
  return groups;
}

std::vector<uint8_t> encode(const std::vector<Group>& groups, const Tables& tables, int skip_below,
                            int lanes) {
  Encoder encoder;
  for (const Group& group : groups) {
    encoder.push(group.symbols.data(), group.indexes.data(),
                 static_cast<int64_t>(group.symbols.size()), tables, skip_below);
  }
  return encoder.finish(lanes);
}

// Decodes into memory of exactly the right size, so that a sanitizer sees each step too far.
std::vector<Group> decode(const std::vector<uint8_t>& stream, const std::vector<Group>& like,
                          const Tables& tables, int skip_below) {
  const std::unique_ptr<uint8_t[]> exact(new uint8_t[stream.size()]);
  std::copy(stream.begin(), stream.end(), exact.get());
  Decoder decoder(exact.get(), stream.size());
  std::vector<Group> groups = like;
  for (Group& group : groups) {
    decoder.pop(group.indexes.data(), static_cast<int64_t>(group.indexes.size()), tables,
                skip_below, group.symbols.data());
  }
  decoder.finish();
  return groups;
}

bool same(const std::vector<Group>& a, const std::vector<Group>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].symbols != b[i].symbols) return false;
  }
  return a.size() == b.size();
}

// The example of docs/bitstream.md.
void test_worked_example() {
  const Tables tables = make_tables({1024, 2048, 512, 512}, {4}, {-1});
  const std::vector<Group> groups = {{{0, -1, 5, 1, -3, 1, 1}, {0, 0, 0, 0, 0, 0, 0}}};
  const std::vector<uint8_t> expected = {0x00, 0x02, 0xdb, 0x04, 0x04,
                                         0x00, 0x00, 0xee, 0x06, 0x03};
  CHECK(encode(groups, tables, 0, 1) == expected);
  CHECK(same(decode(expected, groups, tables, 0), groups));
}

void test_round_trips() {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const Tables tables = random_tables(random);
    const int skip_below = uniform(random, 0, static_cast<int>(tables.size()));
    const std::vector<Group> groups = random_groups(random, tables, skip_below);
    for (const int lanes : {0, 1, 4, 8, 16, 32}) {
      const std::vector<uint8_t> stream = encode(groups, tables, skip_below, lanes);
      CHECK(same(decode(stream, groups, tables, skip_below), groups));
    }
  }
}

void test_every_count() {
  // Two slots with counts (c, kTotal - c), for all c: reciprocals, renormalisation at each
  // threshold.
  Random random(2);
  for (uint32_t count = 1; count < kTotal; ++count) {
    const Tables tables = make_tables(
        {static_cast<uint16_t>(count), static_cast<uint16_t>(kTotal - count)}, {2}, {0});
    std::vector<Group> groups(1);
    for (int i = 0; i < 40; ++i) {
      groups[0].symbols.push_back(static_cast<int16_t>(uniform(random, 0, 1)));
      groups[0].indexes.push_back(0);
    }
    CHECK(same(decode(encode(groups, tables, 0, 1), groups, tables, 0), groups));
  }
}

void test_every_value_escapes() {
  const Tables tables = make_tables({4095, 1}, {2}, {-7});
  std::vector<Group> groups(1);
  for (int value = -32768; value <= 32767; ++value) {
    groups[0].symbols.push_back(static_cast<int16_t>(value));
    groups[0].indexes.push_back(0);
  }
  CHECK(same(decode(encode(groups, tables, 0, 0), groups, tables, 0), groups));
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
    return throws<StreamError>([&] { decode(stream, groups, tables, 0); }, part);
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
  const std::vector<Group> one = {{{0}, {0}}};
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

// Whatever the bytes: a StreamError, or symbols whose only spelling they are; never a step outside
// the arrays.
void fuzz(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  Random random(3);
  int accepted = 0;
  int rejected = 0;
  while (Clock::now() < end) {
    const Tables tables = random_tables(random);
    const int skip_below = uniform(random, 0, 2);
    const std::vector<Group> groups = random_groups(random, tables, skip_below);
    const std::vector<uint8_t> good = encode(groups, tables, skip_below, 0);
    for (int mutation = 0; mutation < 50; ++mutation) {
      std::vector<uint8_t> stream = good;
      for (int edits = uniform(random, 1, 4); edits > 0 && !stream.empty(); --edits) {
        const int last = static_cast<int>(stream.size()) - 1;
        // Header and states come first, the escapes last.
        const int near = last < 12 ? last : 12;
        const int parts[3] = {uniform(random, 0, last), uniform(random, 0, near),
                              uniform(random, last - near, last)};
        const auto at = stream.begin() + parts[uniform(random, 0, 2)];
        switch (uniform(random, 0, 3)) {
          case 0:
            *at = static_cast<uint8_t>(random());
            break;
          case 1:
            *at = static_cast<uint8_t>(*at ^ 1u << uniform(random, 0, 7));
            break;
          case 2:
            stream.erase(at);
            break;
          default:
            stream.insert(at, static_cast<uint8_t>(random()));
        }
      }
      std::vector<Group> decoded;
      try {
        decoded = decode(stream, groups, tables, skip_below);
      } catch (const StreamError&) {
        ++rejected;
        continue;
      }
      ++accepted;
      const int lanes[5] = {1, 4, 8, 16, 32};
      CHECK(encode(decoded, tables, skip_below, lanes[stream[0]]) == stream);
    }
  }
  CHECK(accepted > 0 && rejected > 0);
  std::printf("fuzz: %d mutated streams rejected, %d accepted\n", rejected, accepted);
}

}  // namespace

int main(int argc, char** argv) {
  test_worked_example();
  test_round_trips();
  test_every_count();
  test_every_value_escapes();
  test_wrong_arguments();
  test_push_without_memory();
  test_broken_streams();
  test_failed_decoder_stays_failed();
  fuzz(argc > 1 ? std::atof(argv[1]) : 3.0);
  std::puts("passed");
}
