// SPDX-License-Identifier: MIT
//
// Scratch memory that calls lease and give back, so that coding the second picture of a size
// allocates nothing, as long as an arena needs no more than kKept. An arena is used by one call at
// a time; its contents are not initialised.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/aligned.h"

namespace groupedmixer {

class Arena {
 public:
  static constexpr size_t kKept = size_t{128} << 20;  // bytes

  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Memory for `count` elements, aligned to a cache line, until reset. Throws std::bad_alloc.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  // Gives back what was taken since `mark` was read; large arenas hold on to their memory.
  size_t mark() const { return used_; }
  void release(size_t mark);

  // Gives back everything, and makes one chunk of several; returns the memory to the system where
  // it is more than kKept, which a process would rather use for something else meanwhile.
  void reset();

 private:
  struct Chunk {
    std::byte* data;
    size_t size;
  };
  void* take_bytes(size_t bytes);
  void free_chunks();

  std::vector<Chunk> chunks_;  // in the order they were added
  size_t used_ = 0;            // over all chunks, as if they were one
};

// Arenas of finished calls. Without a lock, so that a process may fork at any moment.
class ArenaPool {
 public:
  ArenaPool() = default;
  ~ArenaPool();
  ArenaPool(const ArenaPool&) = delete;
  ArenaPool& operator=(const ArenaPool&) = delete;

  class Lease {
   public:
    explicit Lease(ArenaPool& pool) : pool_(pool), arena_(pool.take()) {}
    ~Lease() { pool_.give_back(arena_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Arena& operator*() const { return *arena_; }
    Arena* operator->() const { return arena_; }

   private:
    ArenaPool& pool_;
    Arena* arena_;
  };

 private:
  Arena* take();
  void give_back(Arena* arena);

  // Calls at once beyond these allocate afresh each time.
  std::array<std::atomic<Arena*>, 16> idle_{};
};

}  // namespace groupedmixer
