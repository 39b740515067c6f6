// CUDA threads as fibers of one thread of the host: deterministic, and fast. ThreadSanitizer looks
// at what the barriers order and not at what happened to run first, so it needs no real threads.
//
// Blocks of a cooperative launch wait for each other where all threads of each do: a block then
// goes back to the host (launch.h), which goes on with the next one.
//
// A thread runs until it waits. Who runs next: seed 0 takes the next ready lane of the same warp,
// then the next warp; any other seed draws from the ready ones, also when a barrier completes. A
// body whose result depends on the seed lacks a barrier.
#pragma once
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "shim/block.h"
#include "shim/fiber.h"
#include "shim/grid.h"
#include "shim/sanitizers.h"

namespace mvnrob::shim {

// What the blocks of a cooperative launch have in common: addresses that stand for what their
// barrier orders, two in turn as in Group.
struct Together {
  char order[2] = {};
  uint64_t workspace = 0;  // of a barrier that translated PTX makes itself
};

class Scheduler {
 public:
  using Body = void (*)(const void* args);

  // `index` of the blocks at work at the same time.
  Scheduler(unsigned threads, uint64_t seed, unsigned index = 0)
      : block_(threads),
        seed_(seed),
        first_fiber_(index * threads),
        ready_((threads + kWarp - 1) / kWarp),
        alive_(ready_.size()) {
    while (pool().size() < first_fiber_ + threads)
      pool().push_back(new Fiber(fiber_main, unsigned(pool().size())));
  }

  // One block, to its end.
  void run(Body body, const void* args, const Grid& grid) {
    begin(body, args, grid, nullptr);
    resume();
  }

  // One of a cooperative launch: then resume() until it has ended.
  void begin(Body body, const void* args, const Grid& grid, Together* together) {
    body_ = body;
    args_ = args;
    grid_ = grid;
    together_ = together;
    random_ = (seed_ + grid.block) * 0x9E3779B97F4A7C15u | 1;
    failure_ = nullptr;
    block_.reset();
    for (unsigned w = 0; w < alive_.size(); ++w) {
      ready_[w] = alive_[w] = ~0u >> (kWarp - block_.lanes(w));
    }
    current_ = 0;
    ended_ = false;
    release(&start_);
  }

  // To its end, or to where it waits for the other blocks.
  void resume() {
    {
      const Unseen unseen;
      grid_.enter_block();
      running() = this;
      go(next(), host_);
      running() = nullptr;
    }
    if (!ended_) return;
    acquire(&finish_);
    if (failure_) std::rethrow_exception(failure_);
  }

  bool ended() const { return ended_; }
  // Where it waits for the other blocks.
  const Site& waits_at() const { return block_.together().site; }

  // Unwinds a block that waits for others.
  void cancel() {
    {
      const Unseen unseen;
      failure_ = std::make_exception_ptr(Cancelled{});
    }
    try {
      resume();
    } catch (const Cancelled&) {
    }
  }

  // What the primitives of cuda.h need; `running` is the scheduler of the calling CUDA thread.
  static Scheduler*& running() {
    static thread_local Scheduler* scheduler = nullptr;
    return scheduler;
  }
  Block& block() { return block_; }
  const Grid& grid() const { return grid_; }
  unsigned thread() const { return current_; }

  void wait(Group& group, const Site& site) {
    char* order = &group.order[group.generation % 2];
    if (site.orders_memory) release(order);
    meet(group, site);
    if (site.orders_memory) acquire(order);
  }

  // For all blocks of a cooperative launch.
  void wait_for_blocks(const Site& site) {
    if (together_ == nullptr)
      throw std::runtime_error(grid_.name() + " calls " + site.name +
                               ", but its launch is not cooperative");
    char* order = &together_->order[block_.together().generation % 2];
    release(order);
    meet(block_.together(), site);
    acquire(order);
  }

  // A thread, before it looks at what other blocks are to change: they go on to where they do the
  // same, and the rest of its own block to where it waits.
  void pause(const Site& site) {
    const Unseen unseen;
    if (failure_) throw Cancelled{};
    block_.together().site = site;
    ready_[current_ / kWarp] |= 1u << current_ % kWarp;
    fiber(current_).switch_to(host_);
    if (failure_) throw Cancelled{};
  }

  // Null where the launch is not cooperative.
  void* workspace() { return together_ == nullptr ? nullptr : &together_->workspace; }

 private:
  // Stacks are kept for later blocks and launches.
  static std::vector<Fiber*>& pool() {
    static thread_local auto& fibers = *new std::vector<Fiber*>;
    return fibers;
  }

  void meet(Group& group, const Site& site) {
    const Unseen unseen;
    if (failure_) throw Cancelled{};
    const unsigned self = current_, warp = self / kWarp;
    const Outcome outcome = block_.arrive(group, self, site);
    if (outcome == Outcome::kStuck) {
      fail_stuck();
      throw Cancelled{};
    }
    if (outcome == Outcome::kComplete && &group == &block_.together()) {
      ready_ = alive_;
      fiber(self).switch_to(host_);
      if (failure_) throw Cancelled{};
      return;
    }
    if (outcome == Outcome::kComplete) {
      if (&group == &block_.all()) {
        ready_ = alive_;
      } else {
        ready_[warp] = alive_[warp];
      }
      if (seed_ == 0) {
        ready_[warp] &= ~(1u << self % kWarp);
        return;
      }
    }
    const unsigned other = next();
    if (other != self) go(other, fiber(self));
    if (failure_) throw Cancelled{};
  }

  // Takes one of the ready threads; there is one.
  unsigned next() {
    const unsigned warps = unsigned(ready_.size());
    unsigned warp = current_ / kWarp, from = current_ % kWarp;
    if (seed_ != 0) {
      random_ ^= random_ << 13;
      random_ ^= random_ >> 7;
      random_ ^= random_ << 17;
      warp = unsigned(random_ >> 32) % warps;
      from = unsigned(random_ >> 8) % kWarp;
    }
    while (ready_[warp] == 0) {
      warp = warp + 1 == warps ? 0 : warp + 1;
      from = 0;
    }
    const unsigned later = ready_[warp] & ~0u << from;
    const unsigned lane = unsigned(__builtin_ctz(later != 0 ? later : ready_[warp]));
    ready_[warp] &= ~(1u << lane);
    return warp * kWarp + lane;
  }

  void go(unsigned thread, Fiber& from) {
    current_ = thread;
    threadIdx.x = thread;
    from.switch_to(fiber(thread));
  }
  Fiber& fiber(unsigned thread) { return *pool()[first_fiber_ + thread]; }

  void fail(std::exception_ptr error) {
    if (!failure_) failure_ = error;
    ready_ = alive_;  // everybody goes on, to unwind
    ready_[current_ / kWarp] &= ~(1u << current_ % kWarp);
  }

  void fail_stuck() {
    fail(std::make_exception_ptr(std::runtime_error(grid_.name() + block_.stuck())));
  }

  void run_body(unsigned self) {
    acquire(&start_);
    try {
      if (!failure_) {
        body_(args_);
        block_.copies(self).check_done(self);
      }
    } catch (const Cancelled&) {
    } catch (...) {
      const Unseen unseen;
      fail(std::current_exception());
    }
    release(&finish_);
  }

  // What every stack runs: one thread of a block after another, for ever.
  [[noreturn]] static void fiber_main() {
    Fiber::begin();
    for (;;) {
      Scheduler* scheduler;
      unsigned self;
      {
        const Unseen unseen;
        scheduler = running();
        self = scheduler->current_;
      }
      scheduler->run_body(self);
      const Unseen unseen;
      scheduler->leave(self);
    }
  }

  // The thread has ended: on to another, or to the host after the last one.
  void leave(unsigned self) {
    alive_[self / kWarp] &= ~(1u << self % kWarp);
    if (block_.end(self) == Outcome::kStuck && !failure_) fail_stuck();
    bool left = false;
    for (const uint32_t lanes : alive_) left = left || lanes != 0;
    if (left) {
      go(next(), fiber(self));
    } else {
      ended_ = true;
      fiber(self).switch_to(host_);
    }
  }

  Block block_;
  const uint64_t seed_;
  const unsigned first_fiber_;
  uint64_t random_ = 1;
  std::vector<uint32_t> ready_, alive_;  // per warp, a bit per lane
  Fiber host_;
  Body body_ = nullptr;
  const void* args_ = nullptr;
  Grid grid_;
  Together* together_ = nullptr;
  bool ended_ = false;
  unsigned current_ = 0;
  std::exception_ptr failure_;
  char start_ = 0, finish_ = 0;  // addresses: the host's work comes before and after the threads'
};

}  // namespace mvnrob::shim
