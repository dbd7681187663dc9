// SPDX-License-Identifier: MIT

#include "common/team.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

#include "common/float_mode.h"

namespace groupedmixer {
namespace {

// Barriers are a few microseconds apart at best, so waiting starts as a spin; where there are more
// threads than processors, the one waited for needs this one's.
constexpr int kSpins = 4096;

void wait(int spins) {
  if (spins >= kSpins) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int Member::size() const { return team_->size(); }

void Member::barrier() const { team_->barrier(); }

Member::Range Member::share(int64_t count, int64_t grain) const {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t each = grains / size(), more = grains % size();
  const int64_t first = index_ * each + std::min<int64_t>(index_, more);
  const int64_t last = first + each + (index_ < more ? 1 : 0);
  return {std::min(first * grain, count), std::min(last * grain, count)};
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    if (aborted_.load(std::memory_order_acquire)) throw TeamAborted{};
    wait(spins);
  }
}

void run_team(int size, const std::function<void(const Member&)>& body) {
  Team team(std::max(size, 1));
  std::mutex mutex;
  std::exception_ptr failure;
  std::atomic<bool> go{false};
  const auto run = [&](int index) {
    const ScopedFloatMode mode;
    for (int spins = 0; !go.load(std::memory_order_acquire); ++spins) wait(spins);
    try {
      body(Member(team, index));
    } catch (const TeamAborted&) {
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      team.abort();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(team.size()) - 1);
  try {
    while (static_cast<int>(threads.size()) < size - 1) {
      threads.emplace_back(run, static_cast<int>(threads.size()) + 1);
    }
  } catch (...) {  // no more threads, or no memory for one
    team.set_size(static_cast<int>(threads.size()) + 1);
  }
  go.store(true, std::memory_order_release);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace groupedmixer
