// SPDX-License-Identifier: MIT
//
// Rows of a picture on their way through two stacks of blocks, one at each scale, in bounded memory
// and without computing anything twice.
//
// Work is cut into phases: the first makes rows for the first stack, and then there is one a block.
// A phase that looks one row down runs one row behind the phase before it, and rows it will look up
// to are kept. Rows are always latent rows; at 1/8 of the picture's scale, one is two rows of
// pixels.
//
//   strip 0     strip 1     strip 2
//   phase 0 |-----------|-----------|-----------|
//   phase 1 |---------|-----------|-------------|
//   phase 2 |-------|-----------|---------------|
//
// Strips may be run by one team after another: what a strip leaves behind is in the buffers, and
// where it is follows from the strip's index.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/team.h"
#include "transform/blocks.h"
#include "transform/layers.h"

namespace groupedmixer::transform {

// Which rows a phase has computed before a strip begins.
struct Schedule {
  int64_t rows;   // of the picture
  int64_t strip;  // rows a phase computes at a time

  int64_t done(int64_t phase, int64_t index) const {
    return std::clamp(index * strip - phase, int64_t{0}, rows);
  }
};

// The rows from `first` on of something that one phase makes and another uses last.
struct RowBuffer {
  int64_t maker, user;
  int64_t above;  // rows that the user looks up
  int64_t pitch;  // floats of a row
  int64_t first = 0;
  float* data = nullptr;

  float* row(int64_t r) const { return data + (r - first) * pitch; }
  int64_t kept() const { return user - maker + above; }
};

class Stream {
 public:
  // The scale of a stack is how many rows, and columns, of its pixels a latent position has.
  // `strip` 0: as many as a bound on memory allows, but enough for `members`.
  Stream(const BlockStack& first, int64_t first_scale, const BlockStack& second,
         int64_t second_scale, int64_t rows, int64_t columns, int members, int64_t strip);

  // Floats for all rows in memory, and for one member's work on them.
  int64_t buffers_size() const;
  int64_t scratch_size() const;

  // The input of a stack, and its output once all its blocks have run.
  float* first_row(int64_t row) const { return levels_[0].x.row(row); }
  float* second_row(int64_t row) const { return levels_[1].x.row(row); }

  // How many strips it takes until the rows before `row` are finished.
  int64_t strips_until(int64_t row) const {
    return row == 0 ? 0 : ceil_div(row + phases_ - 1, schedule_.strip);
  }

  // How many strips the rows before `row` of the source are enough for.
  int64_t strips_with(int64_t row) const {
    return row == schedule_.rows ? strips_until(row) : row / schedule_.strip;
  }

  // By how many rows the source is ahead of `row` after strips_until(row), and behind it what is
  // finished after strips_with(row), at most.
  int64_t lag() const { return schedule_.strip + phases_ - 2; }

  // Runs strips first .. last - 1, behind those before them. A member calls these for rows
  // [begin, end):
  //   source(begin, end)   makes the rows of the first stack
  //   bridge(begin, end)   makes the rows of the second stack from those of the first
  //   finish(begin, end)   takes the rows of the second stack
  // All members have to call it; each has a Stream of its own, made alike, on the same buffers.
  template <typename Source, typename Bridge, typename Finish>
  void run(const Member& member, float* buffers, float* scratch, int64_t first, int64_t last,
           const Source& source, const Bridge& bridge, const Finish& finish) {
    place(buffers, std::max(first - 1, int64_t{0}));
    const int64_t middle = levels_[0].stack->depth(), finishing = phases_ - 1;
    for (int64_t index = first; index < last; ++index) {
      if (index > 0) slide(member, index);
      for (int64_t phase = 0; phase < phases_; ++phase) {
        for_units(member, phase, index, [&](int64_t begin, int64_t end) {
          if (phase == 0) {
            source(begin, end);
            open(levels_[0], begin, end);
          } else if (phase <= middle) {
            run_block(levels_[0], phase, begin, end, scratch);
          }
          if (phase == middle) {
            bridge(begin, end);
            open(levels_[1], begin, end);
          } else if (phase > middle) {
            run_block(levels_[1], phase, begin, end, scratch);
          }
          if (phase == finishing) finish(begin, end);
        });
        member.barrier();
      }
    }
  }

 private:
  struct Level {
    const BlockStack* stack;
    int64_t scale;
    int64_t phase;  // that makes x
    RowBuffer x;
    std::vector<RowBuffer> seen;  // by each block
  };

  template <typename Visit>
  void for_buffers(const Visit& visit) {
    for (Level& level : levels_) {
      visit(level.x);
      for (RowBuffer& buffer : level.seen) visit(buffer);
    }
  }

  // The member's share of what a phase does in a strip, in parts of as many rows as fill a chain.
  template <typename Item>
  void for_units(const Member& member, int64_t phase, int64_t index, const Item& item) const {
    const int64_t begin = schedule_.done(phase, index);
    const auto share = member.share(schedule_.done(phase, index + 1) - begin);
    for (int64_t row = share.begin; row < share.end; row += unit_) {
      item(begin + row, begin + std::min(row + unit_, share.end));
    }
  }

  static Level make_level(const BlockStack& stack, int64_t scale, int64_t phase, int64_t columns);
  int64_t capacity(const RowBuffer& buffer) const;
  int64_t first_row_of(const RowBuffer& buffer, int64_t index) const;
  void place(float* buffers, int64_t index);
  void slide(const Member& member, int64_t index);
  void open(const Level& level, int64_t begin, int64_t end) const;
  void run_block(const Level& level, int64_t phase, int64_t begin, int64_t end,
                 float* scratch) const;

  int64_t columns_;
  int64_t phases_;
  int64_t unit_;  // rows of a unit of work
  Schedule schedule_;
  Level levels_[2];
};

}  // namespace groupedmixer::transform
