// SPDX-License-Identifier: MIT
//
// The coder against random symbols, damaged streams and wrong arguments. Whatever the bytes: an
// error, or symbols whose only spelling they are; never a step outside the arrays.
//
//   fuzz_rans [--seed S] [--first E] [--executions N | --seconds T]
//
// Prints how much was done, and a digest of all that the coder answered: every stream, symbol,
// statistic and error. It does not depend on the instruction set (GROUPEDMIXER_ISA) or the
// machine. An execution depends on the seed and its own number alone: --first E --executions 1
// repeats one.

#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "entropy/rans.h"
#include "entropy/stream_error.h"
#include "entropy/varint.h"
#include "rans_cases.h"
#include "testing.h"

using namespace groupedmixer::entropy;

namespace {

// FNV-1a of 64 bits.
class Digest {
 public:
  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < size; ++i) hash_ = (hash_ ^ bytes[i]) * 0x100000001b3;
  }
  void add(uint64_t number) {
    for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ (number >> 8 * i & 0xff)) * 0x100000001b3;
  }
  void add(const std::string& text) {
    add(text.size());
    add(text.data(), text.size());
  }
  void add(const std::vector<uint8_t>& bytes) {
    add(bytes.size());
    add(bytes.data(), bytes.size());
  }
  void add(const std::vector<int16_t>& symbols) {
    add(symbols.size());
    for (const int16_t symbol : symbols)
      hash_ = (hash_ ^ static_cast<uint16_t>(symbol)) * 0x100000001b3;
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325;
};

constexpr int kLanes[] = {1, 4, 8, 16, 32};  // by their code
constexpr uint32_t kLaneCodes = 5;

// --- streams taken apart -------------------------------------------------------------------------

struct Parts {
  std::vector<uint32_t> states;  // one of kLanes
  std::vector<uint16_t> words;
  std::vector<uint8_t> escapes;
};

Parts take_apart(const std::vector<uint8_t>& stream) {
  const uint8_t* cursor = stream.data() + 1;
  const uint8_t* const end = stream.data() + stream.size();
  Parts parts;
  parts.escapes.resize(read_varint(cursor, end, 5, "the escape length"));
  const auto next = [&](int bytes) {
    uint32_t number = 0;
    for (int i = 0; i < bytes; ++i) number |= static_cast<uint32_t>(*cursor++) << 8 * i;
    return number;
  };
  for (int lane = 0; lane < kLanes[stream[0]]; ++lane) parts.states.push_back(next(4));
  const auto escape_bytes = static_cast<std::ptrdiff_t>(parts.escapes.size());
  while (end - cursor > escape_bytes) parts.words.push_back(static_cast<uint16_t>(next(2)));
  std::copy(cursor, end, parts.escapes.begin());
  return parts;
}

std::vector<uint8_t> put_together(const Parts& parts) {
  uint8_t lane_code = 0;
  while (static_cast<size_t>(kLanes[lane_code]) != parts.states.size()) ++lane_code;
  std::vector<uint8_t> stream = {lane_code};
  append_varint(parts.escapes.size(), stream);
  const auto append = [&](uint32_t number, int bytes) {
    for (int i = 0; i < bytes; ++i) stream.push_back(static_cast<uint8_t>(number >> 8 * i));
  };
  for (const uint32_t state : parts.states) append(state, 4);
  for (const uint16_t word : parts.words) append(word, 2);
  stream.insert(stream.end(), parts.escapes.begin(), parts.escapes.end());
  return stream;
}

// Changes, removes or adds an element, cuts off the end, or swaps two.
template <typename T>
void edit(Random& random, std::vector<T>& elements) {
  const int size = static_cast<int>(elements.size());
  const auto fresh = static_cast<T>(random());
  if (size == 0) {
    elements.push_back(fresh);
    return;
  }
  const int at = uniform(random, 0, size - 1);
  switch (uniform(random, 0, 6)) {
    case 0:
      elements[at] = fresh;
      break;
    case 1:
      elements[at] = static_cast<T>(elements[at] ^ T{1} << uniform(random, 0, 8 * sizeof(T) - 1));
      break;
    case 2:
      elements[at] = one_of(random, {T(0), T(1), T(0x7f), T(0x80), T(~T(0))});
      break;
    case 3:
      elements.erase(elements.begin() + at);
      break;
    case 4:
      elements.insert(elements.begin() + at, fresh);
      break;
    case 5:
      elements.resize(static_cast<size_t>(one_of(random, {at, size - 1})));
      break;
    default:
      std::swap(elements[at], elements[uniform(random, 0, size - 1)]);
  }
}

// Past the checks of the constructor, so that the damage reaches the decoder's loops.
std::vector<uint8_t> damage_parts(Random& random, const std::vector<uint8_t>& stream) {
  Parts parts = take_apart(stream);
  for (int edits = uniform(random, 1, 3); edits > 0; --edits) {
    switch (uniform(random, 0, 4)) {
      case 0:
        edit(random, parts.states);
        break;
      case 1:
      case 2:
        edit(random, parts.words);
        break;
      case 3:
        edit(random, parts.escapes);
        break;
      default:
        parts.words.resize(parts.words.size() + uniform(random, 1, 40), 0xffff);
    }
  }
  // Rarely another number of lanes.
  const int lanes = kLanes[(random() & 15) == 0 ? random() % kLaneCodes : stream[0]];
  parts.states.resize(static_cast<size_t>(lanes), kLowerBound);
  for (uint32_t& state : parts.states) {
    if (state < kLowerBound) state |= kLowerBound;
  }
  return put_together(parts);
}

std::vector<uint8_t> damage_bytes(Random& random, const std::vector<uint8_t>& stream) {
  std::vector<uint8_t> damaged = stream;
  for (int edits = uniform(random, 1, 4); edits > 0; --edits) edit(random, damaged);
  return damaged;
}

// --- executions ----------------------------------------------------------------------------------

// Groups around whole rounds of the lanes, and now and then more than a kernel does at once.
int random_count(Random& random) {
  const unsigned kind = random() & 1023;
  if (kind == 0) return uniform(random, 1000, 5000);
  if (kind < 16) return uniform(random, 70, 1000);
  if (kind < 256) return uniform(random, 0, 70);
  const int around = 16 * uniform(random, 0, 4) + uniform(random, -1, 1);
  return around < 0 ? 2 : around;
}

void set_random_rounding(Random& random) {
  std::fesetround(
      one_of(random, {FE_TONEAREST, FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}));
}

class Fuzzer {
 public:
  explicit Fuzzer(uint32_t seed) : seed_(seed) {}

  void execute(uint64_t number) {
    make_tables_for(number);
    // Multiplied, so that another seed does not give the same executions some numbers later.
    Random random(static_cast<uint32_t>(number) * 2654435761u + seed_);
    set_random_rounding(random);
    const int kind = uniform(random, 0, 99);
    if (kind < 30) {
      round_trip(random);
    } else if (kind < 60) {
      decode_damaged(random, &damage_parts);
    } else if (kind < 75) {
      decode_damaged(random, &damage_bytes);
    } else if (kind < 85) {
      decode_arbitrary(random);
    } else if (kind < 92) {
      push_wrong(random);
    } else if (kind < 99) {
      pop_wrong(random);
    } else {
      decode_truncated(random);
    }
  }

  uint64_t accepted() const { return accepted_; }
  uint64_t rejected() const { return rejected_; }
  uint64_t digest() const { return digest_.value(); }

 private:
  static constexpr uint64_t kEpoch = 1 << 14;  // executions with the same tables

  void make_tables_for(uint64_t number) {
    const uint64_t epoch = number / kEpoch;
    if (epoch == epoch_) return;
    epoch_ = epoch;
    Random random(seed_ ^ static_cast<uint32_t>(epoch) * 0x9e3779b9u);
    tables_.clear();
    // Small sets, and those around what a byte can name.
    for (const int size : {1, 2, 3, 8, 16, 33, 64, 65, 255, 256, 257, 300}) {
      tables_.push_back(random_tables(random, size));
    }
  }

  const Tables& any_tables(Random& random) {
    const int last = static_cast<int>(tables_.size()) - 1;
    const int half = last / 2;  // large sets are slow: most of their entries are not in the cache
    return tables_[static_cast<size_t>(uniform(random, 0, (random() & 3) == 0 ? last : half))];
  }

  Group any_group(Random& random) {
    const int count = random_count(random);
    return random_group(random, any_tables(random), count);
  }

  std::vector<Group> any_groups(Random& random) {
    std::vector<Group> groups;
    for (int left = one_of(random, {0, 1, 1, 1, 1, 2, 2, 4}); left > 0; --left) {
      groups.push_back(any_group(random));
    }
    return groups;
  }

  void note(const Encoder& encoder) {
    const double bits = encoder.estimated_bits();
    uint64_t pattern;
    static_assert(sizeof(pattern) == sizeof(bits));
    std::memcpy(&pattern, &bits, sizeof(bits));
    digest_.add(pattern);
    digest_.add(encoder.num_coded());
    digest_.add(encoder.num_escaped());
  }

  // Calls `action` and notes its error, which is returned, or that there is none.
  std::string outcome(const std::function<void()>& action) {
    std::string error;
    try {
      action();
    } catch (const StreamError& stream) {
      error = stream.what();
    } catch (const std::invalid_argument& argument) {
      error = argument.what();
    }
    digest_.add(error);
    return error;
  }

  void round_trip(Random& random) {
    const std::vector<Group> groups = any_groups(random);
    Encoder encoder;
    size_t coded = 0, escaped = 0, escape_bytes = 0;
    uint64_t cost = 0;
    for (const Group& group : groups) {
      push(encoder, group);
      for (size_t i = 0; i < group.symbols.size(); ++i) {
        if (group.indexes[i] < group.skip_below) continue;
        ++coded;
        const Table& table = group.tables->table(group.indexes[i]);
        const int slot = group.symbols[i] - table.offset;
        const bool escapes = slot < 0 || slot >= table.num_values;
        const int entry = escapes ? table.num_values : slot;
        cost += group.tables->encode_entries(table)[entry].cost;
        if (!escapes) continue;
        ++escaped;
        const int distance = slot < 0 ? -1 - slot : slot - table.num_values;
        escape_bytes += distance < 1 << 6 ? 1 : distance < 1 << 13 ? 2 : 3;
      }
    }
    CHECK(encoder.num_coded() == coded);
    CHECK(encoder.num_escaped() == escaped);
    CHECK(encoder.estimated_bits() ==
          static_cast<double>(cost) / 65536 + 8.0 * static_cast<double>(escape_bytes));
    note(encoder);
    const int lanes = one_of(random, {0, 1, 4, 8, 16, 16, 32, 32});
    const std::vector<uint8_t> stream = encoder.finish(lanes);
    digest_.add(stream);
    CHECK(lanes == 0 || kLanes[stream[0]] == lanes);
    CHECK(same_symbols(decode(stream, groups), groups));
  }

  // Decodes into `groups` and checks that a stream that is accepted is what their encoder writes.
  void decode_any(Random& random, const std::vector<uint8_t>& stream, std::vector<Group> groups) {
    const auto bytes = exact_copy<uint8_t>(stream);
    std::unique_ptr<Decoder> decoder;
    std::string error = outcome([&] {
      decoder = std::make_unique<Decoder>(bytes.get(), stream.size());
      for (Group& group : groups) {
        pop(*decoder, group);
        digest_.add(group.symbols);
      }
      decoder->finish();
    });
    if (error.empty()) {
      ++accepted_;
      CHECK(encode(groups, decoder->lanes()) == stream);
      return;
    }
    ++rejected_;
    if (decoder == nullptr || (random() & 15) != 0) return;
    Group none;
    none.tables = &tables_[0];
    error = outcome([&] { pop(*decoder, none); });
    CHECK(error.find("unusable") != std::string::npos);
    error = outcome([&] { decoder->finish(); });
    CHECK(error.find("unusable") != std::string::npos);
  }

  // Asks for something else than what the stream holds.
  void change_groups(Random& random, std::vector<Group>& groups) {
    if (groups.empty() || (random() & 3) == 0) {
      groups.push_back(any_group(random));
      return;
    }
    Group& group =
        groups[static_cast<size_t>(uniform(random, 0, static_cast<int>(groups.size()) - 1))];
    if (group.indexes.empty() || (random() & 1) != 0) {
      group = any_group(random);
      return;
    }
    const size_t at =
        static_cast<size_t>(uniform(random, 0, static_cast<int>(group.indexes.size()) - 1));
    group.indexes[at] = wrong_index(random, group, group.indexes[at]);
  }

  // An index without a table, or `otherwise` where indexes cannot be wrong.
  uint16_t wrong_index(Random& random, const Group& group, uint16_t otherwise) {
    const int size = static_cast<int>(group.tables->size()), last = group.bytes ? 255 : 65535;
    if (size > last) return otherwise;
    return static_cast<uint16_t>(one_of(random, {size, last, uniform(random, size, last)}));
  }

  void decode_damaged(Random& random,
                      std::vector<uint8_t> (*damage)(Random&, const std::vector<uint8_t>&)) {
    std::vector<Group> groups = any_groups(random);
    const int lanes = one_of(random, {0, 1, 4, 8, 16, 16, 32, 32});
    std::vector<uint8_t> stream = encode(groups, lanes);
    digest_.add(stream);
    const bool other_groups = (random() & 3) == 0;
    if (other_groups) change_groups(random, groups);
    if (!other_groups || (random() & 1) != 0) stream = damage(random, stream);
    decode_any(random, stream, groups);
  }

  void decode_arbitrary(Random& random) {
    std::vector<uint8_t> stream(
        static_cast<size_t>(uniform(random, 0, (random() & 7) == 0 ? 600 : 160)));
    for (uint8_t& byte : stream) byte = static_cast<uint8_t>(random());
    if (stream.size() > 1 && (random() & 7) != 0) {  // a header that may be right
      stream[0] = static_cast<uint8_t>(random() % kLaneCodes);
      stream[1] = static_cast<uint8_t>(random() & 31);
    }
    decode_any(random, stream, any_groups(random));
  }

  void decode_truncated(Random& random) {
    const int count = uniform(random, 0, 40);
    const std::vector<Group> groups = {random_group(random, any_tables(random), count)};
    const std::vector<uint8_t> stream = encode(groups, kLanes[random() % kLaneCodes]);
    for (auto end = stream.begin(); end != stream.end(); ++end) {
      const std::string error = outcome([&] { decode({stream.begin(), end}, groups); });
      CHECK(!error.empty());
    }
  }

  // What is wrong with a group, in the coder's words, or nothing.
  static std::string first_mistake(const Group& group, bool with_symbols) {
    const int64_t size = group.tables->size();
    for (size_t i = 0; i < group.indexes.size(); ++i) {
      const std::string place = " at position " + std::to_string(i);
      if (group.indexes[i] >= size) {
        return "indexes must be below " + std::to_string(size) + " (the number of tables), got " +
               std::to_string(group.indexes[i]) + place;
      }
      if (with_symbols && group.indexes[i] < group.skip_below && group.symbols[i] != 0) {
        return "symbols must be 0 where indexes < skip_below, got " +
               std::to_string(group.symbols[i]) + place;
      }
    }
    return "";
  }

  // Wrong indexes, and symbols that are skipped but not 0.
  Group wrong_group(Random& random) {
    Group group = any_group(random);
    const int last = static_cast<int>(group.indexes.size()) - 1;
    for (int left = last < 0 ? 0 : uniform(random, 1, 3); left > 0; --left) {
      const auto at = static_cast<size_t>(uniform(random, 0, last));
      if ((random() & 1) != 0) {
        group.indexes[at] = wrong_index(random, group, group.indexes[at]);
      } else {
        group.symbols[at] = static_cast<int16_t>(random());
      }
    }
    return group;
  }

  // Such a group is refused with the first mistake, and the encoder is as it was.
  void push_wrong(Random& random) {
    std::vector<Group> good = any_groups(random);
    Encoder encoder;
    for (const Group& group : good) push(encoder, group);
    const Group wrong = wrong_group(random);
    const std::string error = outcome([&] { push(encoder, wrong); });
    CHECK(error == first_mistake(wrong, true));
    if (error.empty()) good.push_back(wrong);
    note(encoder);
    const int lanes = kLanes[random() % kLaneCodes];
    CHECK(encoder.finish(lanes) == encode(good, lanes));
    const Group next = any_group(random);
    push(encoder, next);
    good.push_back(next);
    const std::vector<uint8_t> stream = encoder.finish(lanes);
    digest_.add(stream);
    CHECK(same_symbols(decode(stream, good), good));
  }

  // A decoder refuses it with the first mistake too.
  void pop_wrong(Random& random) {
    std::vector<Group> groups = any_groups(random);
    const Group wrong = wrong_group(random);
    const std::string mistake = first_mistake(wrong, false);
    // The stream holds what comes in front of the mistake, so that nothing else is wrong.
    groups.push_back(wrong);
    Group& held = groups.back();
    for (size_t i = 0; i < held.indexes.size(); ++i) {
      if (held.indexes[i] >= held.tables->size()) held.indexes[i] = 0;
      if (held.indexes[i] < held.skip_below) held.symbols[i] = 0;
    }
    const std::vector<uint8_t> stream = encode(groups, kLanes[random() % kLaneCodes]);
    held.indexes = wrong.indexes;
    const std::string error = outcome([&] { decode(stream, groups); });
    CHECK(error == mistake);
  }

  const uint32_t seed_;
  uint64_t epoch_ = ~uint64_t{0};
  std::vector<Tables> tables_;
  Digest digest_;
  uint64_t accepted_ = 0;
  uint64_t rejected_ = 0;
};

constexpr uint64_t kNone = ~uint64_t{0};
uint64_t running = kNone;

void tell_where() {
  if (running == kNone) return;
  std::fprintf(stderr, "in execution %llu\n", static_cast<unsigned long long>(running));
}

}  // namespace

// Of the sanitizers' libraries, where they are linked in.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

int main(int argc, char** argv) {
  uint32_t seed = 1;
  uint64_t first = 0, executions = 10000;
  double seconds = 0;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--seed") {
      seed = static_cast<uint32_t>(std::strtoul(value, nullptr, 10));
    } else if (option == "--first") {
      first = std::strtoull(value, nullptr, 10);
    } else if (option == "--executions") {
      executions = std::strtoull(value, nullptr, 10);
    } else if (option == "--seconds") {
      seconds = std::atof(value);
    } else {
      std::fprintf(stderr, "there is no option %s\n", option.c_str());
      return 2;
    }
  }
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  Fuzzer fuzzer(seed);
  std::atexit(tell_where);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(tell_where);
  uint64_t done = 0;
  while (seconds > 0 ? Clock::now() < end : done < executions) {
    running = first + done++;
    try {
      fuzzer.execute(running);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }
  running = kNone;
  std::fesetround(FE_TONEAREST);
  std::printf("%s: seed %u, %llu executions from %llu, %llu streams accepted, %llu rejected\n",
              groupedmixer::isa_name(groupedmixer::active_isa()), seed,
              static_cast<unsigned long long>(done), static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(fuzzer.accepted()),
              static_cast<unsigned long long>(fuzzer.rejected()));
  std::printf("digest %016llx\npassed\n", static_cast<unsigned long long>(fuzzer.digest()));
}
