// SPDX-License-Identifier: MIT
//
// Threads that work on one thing together. A team lives for one call: its threads are started at
// the beginning and joined at the end, so nothing of it survives between calls, and a process may
// fork between them. Every member runs under a ScopedFloatMode.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>

namespace groupedmixer {

class Team;

// What a member knows of itself. Copies share the team.
class Member {
 public:
  Member(Team& team, int index) : team_(&team), index_(index) {}

  int index() const { return index_; }
  int size() const;

  // Waits for the whole team. What members wrote before it, all see after it.
  // Throws TeamAborted where another member has thrown.
  void barrier() const;

  // The member's share of `count` things, in multiples of `grain`; shares differ by at most one
  // grain.
  struct Range {
    int64_t begin, end;
  };
  Range share(int64_t count, int64_t grain = 1) const;

 private:
  Team* team_;
  int index_;
};

// Unwinds the members of a team of which one has thrown something else.
struct TeamAborted {};

// Runs `body` on `size` threads, the calling one included, and waits for them. Rethrows what a
// member threw. Where the system grants fewer threads, the team is smaller.
void run_team(int size, const std::function<void(const Member&)>& body);

class Team {
 public:
  explicit Team(int size) : size_(size) {}
  int size() const { return size_; }
  void set_size(int size) { size_ = size; }
  void barrier();
  void abort() { aborted_.store(true, std::memory_order_release); }

 private:
  int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> aborted_{false};
};

}  // namespace groupedmixer
