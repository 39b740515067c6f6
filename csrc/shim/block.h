// A thread block's own record: which of its threads waits where, and what its warps exchange.
//
// Both schedulers (fibers.h, threads.h) keep one; they differ in how a thread is put to sleep. A
// barrier or collective is a Group (the block, alone or beside others, or a warp): the last member
// to arrive completes it. Nobody can wait for ever unseen: when a group cannot complete any more,
// arrive() or end() says so.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "shim/copy_async.h"

namespace mvnrob::shim {

constexpr unsigned kWarp = 32;

// A call in a body: of a barrier, which orders the memory accesses before and after it, or of a
// collective, which does not.
struct Site {
  const char* name;
  const char* file;
  int line;
  bool orders_memory;

  std::string text() const {
    const char* slash = std::strrchr(file, '/');
    return std::string(name) + " (" + (slash ? slash + 1 : file) + ":" + std::to_string(line) + ")";
  }
};

// What arrive() and end() tell the scheduler.
enum class Outcome { kWait, kComplete, kStuck };

struct Group {
  unsigned size = 0, arrived = 0, generation = 0;
  bool mixed = false;  // members wait at different places
  Site site{};         // where the first of them waits
  // Addresses that stand for what a completion orders. Two in turn, else who is already on the way
  // to the next barrier would seem to come before those that still leave this one.
  char order[2] = {};

  void reset(unsigned members) {
    size = members;
    arrived = generation = 0;
  }
};

// What unwinds the threads that can no longer go on. Not an std::exception: no body may catch it.
struct Cancelled {};

class Block {
 public:
  explicit Block(unsigned threads) : warps_((threads + kWarp - 1) / kWarp), seats_(threads) {}

  // Before every block of the grid.
  void reset() {
    all_.reset(threads());
    together_.reset(threads());
    for (unsigned w = 0; w < warps_.size(); ++w) warps_[w].group.reset(lanes(w));
    for (Seat& seat : seats_) {
      seat.group = nullptr;
      seat.ended = false;
      seat.copies.clear();
    }
    any_[0] = any_[1] = 0;
    running_ = threads();
    ended_ = 0;
  }

  unsigned threads() const { return unsigned(seats_.size()); }
  unsigned lanes(unsigned warp) const {
    const unsigned left = threads() - warp * kWarp;
    return left < kWarp ? left : kWarp;
  }
  Group& all() { return all_; }
  // At the barrier of a cooperative launch's blocks.
  Group& together() { return together_; }
  const Group& together() const { return together_; }
  Group& warp(unsigned thread) { return warps_[thread / kWarp].group; }
  CopyQueue& copies(unsigned thread) { return seats_[thread].copies; }

  // Thread comes to a barrier or collective of its group.
  Outcome arrive(Group& group, unsigned thread, const Site& site) {
    Seat& seat = seats_[thread];
    seat.group = &group;
    seat.generation = group.generation;
    seat.site = site;
    if (group.arrived == 0) {
      group.site = site;
      group.mixed = false;
    } else if (group.site.line != site.line || group.site.file != site.file ||
               group.site.name != site.name) {
      group.mixed = true;
    }
    ++group.arrived;
    --running_;
    if (group.arrived == group.size && !group.mixed) {
      group.arrived = 0;
      running_ += group.size;
      if (&group == &all_) any_[(group.generation + 1) % 2] = 0;
      ++group.generation;
      return Outcome::kComplete;
    }
    return running_ == 0 || group.arrived == group.size ? Outcome::kStuck : Outcome::kWait;
  }

  // Thread leaves the body.
  Outcome end(unsigned thread) {
    seats_[thread].ended = true;
    ++ended_;
    --running_;
    return running_ == 0 && ended_ < threads() ? Outcome::kStuck : Outcome::kWait;
  }

  // The end of an error message: what every thread is doing.
  std::string stuck() const {
    std::map<std::string, std::vector<unsigned>> places;
    for (unsigned t = 0; t < threads(); ++t) {
      const Seat& seat = seats_[t];
      const Group* const group = seat.group;
      std::string place = "not waiting";
      if (seat.ended) {
        place = "have ended";
      } else if (group != nullptr && group->generation == seat.generation) {
        place = "wait at " + seat.site.text();
      }
      places[place].push_back(t);
    }
    std::string text;
    for (const auto& [place, members] : places) {
      text += (text.empty() ? "" : "; ") + ranges(members) + " " + place;
    }
    return " cannot go on: " + text;
  }

  // Exchange of a warp. Two buffers in turn: no lane can write one again before every lane has
  // arrived at the collective between, that is, has read it.
  void put(unsigned thread, uint64_t value) { slot(thread, warp(thread).generation) = value; }
  uint64_t get(unsigned thread, unsigned lane, unsigned generation) {
    return slot(thread - thread % kWarp + lane, generation);
  }
  int& any(unsigned generation) { return any_[generation % 2]; }

 private:
  struct Seat {
    const Group* group = nullptr;  // waits in it, while that is of the same generation
    unsigned generation = 0;
    Site site{};
    bool ended = false;
    CopyQueue copies;
  };
  struct Warp {
    Group group;
    uint64_t slots[2][kWarp] = {};
  };

  uint64_t& slot(unsigned thread, unsigned generation) {
    return warps_[thread / kWarp].slots[generation % 2][thread % kWarp];
  }

  static std::string ranges(const std::vector<unsigned>& members) {
    std::string text = members.size() == 1 ? "thread" : "threads";
    for (size_t i = 0; i < members.size();) {
      size_t last = i;
      while (last + 1 < members.size() && members[last + 1] == members[last] + 1) ++last;
      text += (i == 0 ? " " : ", ") + std::to_string(members[i]);
      if (last > i) text += "-" + std::to_string(members[last]);
      i = last + 1;
    }
    return text;
  }

  Group all_, together_;
  std::vector<Warp> warps_;
  std::vector<Seat> seats_;
  int any_[2] = {};  // of __syncthreads_or, in turn
  unsigned running_ = 0, ended_ = 0;
};

}  // namespace mvnrob::shim
