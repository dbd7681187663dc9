// SPDX-License-Identifier: MIT
//
// How far a call is, told to whoever made it, who may stop it.
//
// Only the thread that made the call asks its maker, as Python wants it; the others count what they
// have done and look whether they should stop.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <utility>

namespace groupedmixer {

// Unwinds a call that is to stop.
struct Stopped {};

class Watch {
 public:
  // Is told of parts done, of parts in all; what it throws stops the call.
  using Tell = std::function<void(int64_t done, int64_t total)>;
  // Is called now and then, and throws where the call is to stop.
  using Ask = std::function<void()>;

  static constexpr std::chrono::milliseconds kPatience{50};  // between two calls of Ask

  Watch() = default;         // nobody is told or asked
  Watch(Tell tell, Ask ask)  // either may be empty
      : tell_(std::move(tell)), ask_(std::move(ask)), asked_(Clock::now()) {}

  // On the thread that made the call. begin() tells that nothing is done yet and finish() that
  // everything is; poll() tells what is new in between, and asks. begin() and finish() throw
  // Stopped.
  void begin(int64_t total) {
    total_ = total;
    tell(0);
    check();
  }
  void poll() {
    const int64_t done = done_.load(std::memory_order_relaxed);
    if (done != told_ && done < total_) tell(done);
    if (!ask_ || stopped()) return;
    const Clock::time_point now = Clock::now();
    if (now - asked_ < kPatience) return;
    asked_ = now;
    guarded(ask_);
  }
  void finish() {
    tell(total_);
    check();
  }

  // On any thread, as often as the call should notice that it is to stop.
  void pass(bool made_the_call) {
    if (made_the_call) poll();
    check();
  }
  void count() { done_.fetch_add(1, std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void check() const {
    if (stopped()) throw Stopped{};
  }

  // Why the call was stopped.
  [[noreturn]] void rethrow() const { std::rethrow_exception(failure_); }

 private:
  using Clock = std::chrono::steady_clock;

  void tell(int64_t done) {
    told_ = done;
    if (tell_ && !stopped()) guarded([&] { tell_(done, total_); });
  }

  template <typename Call>
  void guarded(const Call& call) {
    try {
      call();
    } catch (...) {
      failure_ = std::current_exception();
      stopped_.store(true, std::memory_order_relaxed);
    }
  }

  Tell tell_;
  Ask ask_;
  int64_t total_ = 0;
  int64_t told_ = 0;
  Clock::time_point asked_{};
  std::exception_ptr failure_;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace groupedmixer
