// SPDX-License-Identifier: MIT

#include "common/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace groupedmixer {
namespace {

constexpr size_t kPage = size_t{1}
                         << 21;  // of huge pages, which spare the cache's reads TLB misses

}  // namespace

Arena::~Arena() { free_chunks(); }

void Arena::free_chunks() {
  for (const Chunk& chunk : chunks_) munmap(chunk.data, chunk.size);
  chunks_.clear();
}

void* Arena::take_bytes(size_t bytes) {
  bytes = std::max(bytes, size_t{1});
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  size_t base = 0;
  for (const Chunk& chunk : chunks_) {
    if (used_ < base + chunk.size) {
      const size_t offset = std::max(used_, base) - base;
      if (offset + bytes <= chunk.size) {
        used_ = base + offset + bytes;
        return chunk.data + offset;
      }
    }
    base += chunk.size;
  }
  chunks_.reserve(chunks_.size() + 1);
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  madvise(data, size, MADV_HUGEPAGE);  // a hint: nothing depends on its success
  chunks_.push_back({static_cast<std::byte*>(data), size});
  used_ = base + bytes;
  return data;
}

void Arena::release(size_t mark) { used_ = mark; }

void Arena::reset() {
  size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.size;
  if (chunks_.size() > 1 || total > kKept) free_chunks();
  used_ = 0;
  if (chunks_.empty() && total > 0 && total <= kKept) take_bytes(total);
  used_ = 0;
}

ArenaPool::~ArenaPool() {
  for (auto& slot : idle_) delete slot.load();
}

Arena* ArenaPool::take() {
  for (auto& slot : idle_) {
    if (Arena* arena = slot.exchange(nullptr, std::memory_order_acquire)) return arena;
  }
  return new Arena;
}

void ArenaPool::give_back(Arena* arena) {
  try {
    arena->reset();
  } catch (const std::bad_alloc&) {  // it could not be made one chunk, and is empty now
  }
  for (auto& slot : idle_) {
    Arena* none = nullptr;
    if (slot.compare_exchange_strong(none, arena, std::memory_order_release)) return;
  }
  delete arena;
}

}  // namespace groupedmixer
