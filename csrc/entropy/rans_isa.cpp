// SPDX-License-Identifier: MIT
//
// The coder over whole rounds of its lanes, sixteen states at a time.

#include "entropy/rans_kernels.h"

#if defined(__AVX512F__)
#include "entropy/states_avx512.h"
#elif defined(__AVX2__)
#include "entropy/states_avx2.h"
#endif

namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT {

#if defined(__AVX2__)
namespace {

constexpr int kVectors = kMaxLanes / kStates;  // of the largest round
constexpr int64_t kWordBytes = 2;
constexpr int64_t kRoundBytes = kWordBytes * kMaxLanes;  // the most that a round reads

GROUPEDMIXER_STATES States near_base(const Table* tables, States index) {
  static_assert(sizeof(Table) == 4 * sizeof(uint32_t));
  return gather(&tables->near_base, shift_left<2>(index));
}

__attribute__((noinline)) void note_far(DecodeRun& run, Mask mask, States point, int64_t begin) {
  uint32_t points[kStates];
  store(points, point);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    run.far[run.num_far++] = {static_cast<uint32_t>(begin + lane), points[lane]};
  }
}

// V vectors of states are a round.
template <int V, typename Index>
int64_t decode_rounds(DecodeRun& run, const Index* indexes, int64_t count) {
  const States num_tables = all(static_cast<uint32_t>(run.num_tables));
  const bool all_bytes_valid = sizeof(Index) == 1 && run.num_tables > 255;
  // Copies, as a store might change what lies in the run.
  const uint32_t* const entries = run.entries;
  const Table* const tables = run.tables;
  int16_t* const symbols = run.symbols;
  const uint8_t* word = run.word;
  const uint8_t* end = run.words_end;
  // The last words are read from a copy that has room behind it.
  uint8_t tail[2 * kRoundBytes];
  States state[V];
  for (int v = 0; v < V; ++v) state[v] = load(run.states + v * kStates);
  int64_t done = 0;
  for (; done + V * kStates <= count; done += V * kStates) {
    if (end - word < kRoundBytes && end == run.words_end) {
      const int64_t left = end - word;
      __builtin_memcpy(tail, word, static_cast<size_t>(left));
      __builtin_memset(tail + left, 0, static_cast<size_t>(kRoundBytes));
      word = tail;
      end = tail + left;
    }
    if (run.num_far + V * kStates > run.far_capacity) break;
    States index[V];
    Mask valid = 0xffff;
    for (int v = 0; v < V; ++v) {
      index[v] = load(indexes + done + v * kStates);
      if (!all_bytes_valid) valid &= below(index[v], num_tables);
    }
    if (valid != 0xffff) break;
    States next[V], point[V], entry[V];
    const uint8_t* next_word = word;
    for (int v = 0; v < V; ++v) {
      point[v] = state[v] & all(kTotal - 1);
      entry[v] = gather(entries, shift_left<kPrecision>(index[v]) | point[v]);
    }
    for (int v = 0; v < V; ++v) {
      const States count_of = shift_right<kPrecision>(entry[v]) & all(kTotal - 1);
      const States x = count_of * shift_right<kPrecision>(state[v]) + (entry[v] & all(kTotal - 1));
      const Mask low = below(x, all(kLowerBound));
      next[v] = refill(x, low, next_word);
      next_word += kWordBytes * __builtin_popcount(low);
    }
    if (next_word > end) break;  // only in the tail: words are missing
    word = next_word;
    for (int v = 0; v < V; ++v) {
      state[v] = next[v];
      const States code = shift_right<2 * kPrecision>(entry[v]);
      store(symbols + done + v * kStates, near_base(tables, index[v]) + code);
      const Mask far = 0xffff ^ below(code, all(kFarCode));
      if (far != 0) note_far(run, far, point[v], done + v * kStates);
    }
  }
  for (int v = 0; v < V; ++v) store(run.states + v * kStates, state[v]);
  run.word = run.words_end - (end - word);
  return done;
}

template <typename Index>
int64_t decode(DecodeRun& run, const Index* indexes, int64_t count) {
  return run.lanes == kStates ? decode_rounds<1>(run, indexes, count)
                              : decode_rounds<kVectors>(run, indexes, count);
}

template <typename Index>
int64_t look_up(LookUpRun& run, const int16_t* symbols, const Index* indexes, int64_t count) {
  // Costs are below 2^20, so this many fit in 32 bits.
  constexpr int64_t kCostsAtOnce = 4096;
  const States num_tables = all(static_cast<uint32_t>(run.num_tables));
  // Copies, as a store might change what lies in the run.
  const SlotRange* const ranges = run.ranges;
  const EncodeEntry* const entries = run.entries;
  Interval* const intervals = run.intervals;
  int64_t num_escaped = run.num_escaped;
  int64_t done = 0;
  bool stop = false;
  while (!stop && done + kStates <= count) {
    States cost = all(0);
    int64_t left = (count - done) / kStates;
    if (left > kCostsAtOnce) left = kCostsAtOnce;
    for (; left > 0; --left, done += kStates) {
      const States index = load(indexes + done);
      stop = below(index, num_tables) != 0xffff || num_escaped + kStates > run.escaped_capacity;
      if (stop) break;
      const Pairs range = gather_pairs(ranges, index);
      const States offset = sign_extended(range.second);
      const States values = shift_right<16>(range.second);
      // As an unsigned number a slot is too large on either side of the table.
      const States slot = load(symbols + done) - offset;
      const States entry = range.first + offset + smaller(slot, values);
      const Pairs pairs = gather_pairs(entries, entry);
      store(reinterpret_cast<uint32_t*>(intervals + done), pairs.first);
      cost = cost + pairs.second;
      Mask escaped = 0xffff ^ below(slot, values);
      for (; escaped != 0; escaped &= escaped - 1) {
        run.escaped[num_escaped++] = static_cast<uint32_t>(done + __builtin_ctz(escaped));
      }
    }
    run.cost += total(cost);
  }
  run.num_escaped = num_escaped;
  return done;
}

template <int V>
void encode_rounds(EncodeRun& run, const Interval* intervals, int64_t count) {
  States state[V];
  for (int v = 0; v < V; ++v) state[v] = load(run.states + v * kStates);
  uint8_t* cursor = run.cursor;
  for (int64_t i = count; i > 0;) {
    for (int v = V - 1; v >= 0; --v) {
      i -= kStates;
      const States interval = load(reinterpret_cast<const uint32_t*>(intervals + i));
      const States start = interval & all(0xffff);
      const States count_of = shift_right<16>(interval);
      const Mask full = 0xffff ^ below(shift_right<32 - kPrecision>(state[v]), count_of);
      const States x = spill(state[v], full, cursor);
      state[v] = spread(x, count_of) + start;
    }
  }
  for (int v = 0; v < V; ++v) store(run.states + v * kStates, state[v]);
  run.cursor = cursor;
}

void encode(EncodeRun& run, const Interval* intervals, int64_t count) {
  if (run.lanes == kStates) {
    encode_rounds<1>(run, intervals, count);
  } else {
    encode_rounds<kVectors>(run, intervals, count);
  }
}

}  // namespace

extern const RansKernels rans_kernels;
const RansKernels rans_kernels = {&decode<uint8_t>, &decode<uint16_t>, &look_up<uint8_t>,
                                  &look_up<uint16_t>, &encode};
#else
// Without vectors the plain loops are the fastest.
extern const RansKernels rans_kernels;
const RansKernels rans_kernels = {};
#endif

}  // namespace groupedmixer::entropy::GROUPEDMIXER_VARIANT
