// SPDX-License-Identifier: MIT

#include "transform/stream.h"

#include <cstring>

namespace groupedmixer::transform {
namespace {

// Floats that rows in memory may take. More brought no speed, and costs caches and big pictures.
constexpr int64_t kBufferFloats = int64_t{8} << 20;
constexpr int64_t kLeastStrip = 8;
// Of narrow pictures: a strip is how far the source may be ahead of what is asked for.
constexpr int64_t kMostStrip = 64;

}  // namespace

Stream::Stream(const BlockStack& first, int64_t first_scale, const BlockStack& second,
               int64_t second_scale, int64_t rows, int64_t columns, int members, int64_t strip)
    : columns_(columns),
      phases_(1 + first.depth() + second.depth()),
      unit_(std::max(kChainPixels / columns, int64_t{1})),
      schedule_{rows, strip},
      levels_{make_level(first, first_scale, 0, columns),
              make_level(second, second_scale, first.depth(), columns)} {
  if (strip > 0) return;
  int64_t pitch = 0;
  for_buffers([&](const RowBuffer& buffer) { pitch += buffer.pitch; });
  const int64_t most = std::max(
      {std::min(kBufferFloats / pitch, kMostStrip), static_cast<int64_t>(members), kLeastStrip});
  const int64_t all = rows + phases_ - 1;  // in one strip
  schedule_.strip = ceil_div(all, ceil_div(all, most));
}

Stream::Level Stream::make_level(const BlockStack& stack, int64_t scale, int64_t phase,
                                 int64_t columns) {
  const int64_t pitch = scale * scale * columns * stack.channels();
  Level level{&stack, scale, phase, {phase, phase + stack.depth(), 0, pitch}, {}};
  for (int64_t block = 0; block < stack.depth(); ++block) {
    level.seen.push_back({phase + block, phase + block + 1, 1, pitch});
  }
  return level;
}

int64_t Stream::capacity(const RowBuffer& buffer) const {
  return std::min(schedule_.strip + buffer.kept(), schedule_.rows);
}

int64_t Stream::buffers_size() const {
  int64_t size = 0;
  for (const Level& level : levels_) {
    size += capacity(level.x) * level.x.pitch;
    for (const RowBuffer& buffer : level.seen) size += capacity(buffer) * buffer.pitch;
  }
  return size;
}

int64_t Stream::scratch_size() const {
  int64_t size = 0;
  for (const Level& level : levels_) {
    const int64_t rows = unit_ * level.scale, width = columns_ * level.scale;
    size = std::max(size, level.stack->scratch_size(rows, width));
  }
  return size;
}

// Of what is in a buffer while strip `index` runs.
int64_t Stream::first_row_of(const RowBuffer& buffer, int64_t index) const {
  return std::max(schedule_.done(buffer.user, index) - buffer.above, int64_t{0});
}

// As strip `index` left the buffers.
void Stream::place(float* buffers, int64_t index) {
  for_buffers([&](RowBuffer& buffer) {
    buffer.first = first_row_of(buffer, index);
    buffer.data = buffers;
    buffers += capacity(buffer) * buffer.pitch;
  });
}

// Moves the rows that are still needed to the front of their buffers.
void Stream::slide(const Member& member, int64_t index) {
  int next = 0;
  for_buffers([&](RowBuffer& buffer) {
    const int64_t first = first_row_of(buffer, index);
    const int64_t count = schedule_.done(buffer.maker, index) - first;
    if (next++ % member.size() == member.index()) {
      std::memmove(buffer.data, buffer.row(first),
                   static_cast<size_t>(count * buffer.pitch) * sizeof(float));
    }
    buffer.first = first;
  });
  member.barrier();
}

void Stream::open(const Level& level, int64_t begin, int64_t end) const {
  if (level.seen.empty()) return;
  const int64_t pixels = (end - begin) * level.scale * level.scale * columns_;
  level.stack->open(level.x.row(begin), pixels, level.seen.front().row(begin));
}

void Stream::run_block(const Level& level, int64_t phase, int64_t begin, int64_t end,
                       float* scratch) const {
  const size_t block = static_cast<size_t>(phase - level.phase - 1);
  const RowBuffer& seen = level.seen[block];
  const int64_t width = level.scale * columns_;
  BlockRows part;
  part.above = begin > 0 ? 1 : 0;
  part.below = end < schedule_.rows ? 1 : 0;
  part.rows = (end - begin) * level.scale;
  part.width = width;
  part.seen = seen.row(begin) - part.above * width * level.stack->channels();
  part.x = level.x.row(begin);
  part.next = block + 1 < level.seen.size() ? level.seen[block + 1].row(begin) : nullptr;
  level.stack->run(static_cast<int64_t>(block), part, scratch);
}

}  // namespace groupedmixer::transform
