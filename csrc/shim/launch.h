// Runs kernel bodies on the CPU, for tests: shim::launch<Body>(blocks, shared_bytes, args).
//
// Blocks run one after another, those of a cooperative launch (launch_together) from one barrier of
// the grid to the next. What the device leaves undefined is made visible: shared memory
// starts as 0xFF bytes (NaN) in every block and ends where the launch said (AddressSanitizer sees
// the first byte beyond, otherwise a guard area is looked at after the block), asynchronous copies
// arrive as late as allowed (copy_async.h), and threads and blocks can be run in other orders
// (set_order, or MVNROB_SHIM_ORDER in the environment). Not modelled: blocks at work at the same
// time between barriers, memory weaker than the host's, bank conflicts, anything in PTX but where
// it has been translated to stand in for bodies (StandIns).
#pragma once
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/told.h"
#include "shim/grid.h"
#include "shim/scheduler.h"

namespace mvnrob::shim {

// The most that one block can ask for on any device (227 KB, sm_90).
constexpr size_t kMaxSharedBytes = 232448;

// Seed of the order in which threads and blocks run; 0 is the natural one.
inline uint64_t& order() {
  static uint64_t seed = [] {
    const char* text = std::getenv("MVNROB_SHIM_ORDER");
    return text == nullptr ? uint64_t(0) : std::strtoull(text, nullptr, 10);
  }();
  return seed;
}
inline void set_order(uint64_t seed) { order() = seed; }

// What a device has for a block.
inline size_t& device_shared() {
  static size_t bytes = kMaxSharedBytes;
  return bytes;
}

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes + kGuard) != 0) throw std::bad_alloc();
    data_ = static_cast<unsigned char*>(memory);
  }
  ~SharedMemory() { std::free(data_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  unsigned char* data() { return data_; }
  void fill() { std::memset(data_, 0xFF, bytes_ + kGuard); }
  void check_guard(const Grid& grid) const {
    for (size_t i = bytes_; i < bytes_ + kGuard; ++i) {
      if (data_[i] == 0xFF) continue;
      throw std::runtime_error(grid.name() + " wrote to byte " + std::to_string(i) + " of its " +
                               std::to_string(bytes_) + " bytes of shared memory");
    }
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kGuard = 0;
#else
  static constexpr size_t kGuard = 256;
#endif
  size_t bytes_;
  unsigned char* data_ = nullptr;
};

// How many launches there have been.
inline int64_t& launches() {
  static int64_t count = 0;
  return count;
}

// What runs in place of bodies, by their names, and how often each has: code translated from what
// nvcc makes of them (tests/native/ptx). None, where none is linked.
struct StandIns {
  std::map<std::string, Scheduler::Body> bodies;
  std::map<std::string, int64_t> launches;
  bool wanted = true, required = false;
  uint64_t approximate = 0;  // seed of the errors of approximate instructions; 0: none to speak of
};
inline StandIns& stand_ins() {
  static StandIns all;
  return all;
}
inline Scheduler::Body body_or_stand_in(const Grid& grid, Scheduler::Body body) {
  StandIns& all = stand_ins();
  if (!all.wanted) return body;
  const auto found = all.bodies.find(grid.kernel());
  if (found == all.bodies.end()) {
    if (all.required) throw std::runtime_error(grid.kernel() + " has no stand-in");
    return body;
  }
  ++all.launches[found->first];
  return found->second;
}

inline void begin_launch(const Grid& grid) {
  ++launches();
  if (grid.blocks == 0) throw std::invalid_argument("launch: blocks must be positive, got 0");
  if (grid.shared_bytes > kMaxSharedBytes) {
    throw std::invalid_argument("launch: shared_bytes must be at most " +
                                std::to_string(kMaxSharedBytes) + ", got " +
                                std::to_string(grid.shared_bytes));
  }
}

// Every block once: a step without a common factor with their number, from anywhere.
template <class Run>
void for_each_block(unsigned blocks, const Run& run) {
  uint64_t step = 1, block = 0;
  if (order() != 0) {
    step = order() * 0x9E3779B97F4A7C15u % blocks;
    while (std::gcd(step, uint64_t(blocks)) != 1) step = (step + 1) % blocks;
    block = order() % blocks;
  }
  for (unsigned i = 0; i < blocks; ++i) {
    run(unsigned(block));
    block = (block + step) % blocks;
  }
}

// What every launch does, whatever its body.
inline void launch_grid(Grid grid, Scheduler::Body body, const void* args) {
  begin_launch(grid);
  SharedMemory shared(grid.shared_bytes);
  grid.shared = shared.data();
  Scheduler scheduler(grid.threads, order());
  body = body_or_stand_in(grid, body);
  for_each_block(grid.blocks, [&](unsigned block) {
    grid.block = block;
    shared.fill();
    scheduler.run(body, args, grid);
    shared.check_guard(grid);
  });
}

// Every block to the same barrier of the grid, or to its end, before any goes on. All blocks meet
// at the same barrier in the source.
inline void launch_grid_together(Grid grid, Scheduler::Body body, const void* args) {
  begin_launch(grid);
  std::deque<SharedMemory> shared;
  std::deque<Scheduler> blocks;
  Together together;
  body = body_or_stand_in(grid, body);
  for (unsigned block = 0; block < grid.blocks; ++block) {
    shared.emplace_back(grid.shared_bytes).fill();
    grid.block = block;
    grid.shared = shared.back().data();
    blocks.emplace_back(grid.threads, order(), block).begin(body, args, grid, &together);
  }
  unsigned ended = 0;
  const auto state = [](const Scheduler& block) {
    return block.ended() ? "has ended" : "waits at " + block.waits_at().text();
  };
  try {
    while (ended < grid.blocks) {
      for_each_block(grid.blocks, [&](unsigned block) {
        blocks[block].resume();
        if (!blocks[block].ended()) return;
        shared[block].check_guard(blocks[block].grid());
        ++ended;
      });
      for (const Scheduler& block : blocks)
        if (state(block) != state(blocks[0]))
          throw std::runtime_error(block.grid().name() + " " + state(block) + ", but block 0 " +
                                   state(blocks[0]));
    }
  } catch (...) {
    for (Scheduler& block : blocks)
      if (!block.ended()) block.cancel();
    throw;
  }
}

template <class Body>
Grid grid_of(unsigned blocks, size_t shared_bytes) {
  static_assert(Body::kThreads >= 1 && Body::kThreads <= 1024, "a block has 1 to 1024 threads");
  Grid grid;
  grid.body = &typeid(Body);
  grid.threads = Body::kThreads;
  grid.blocks = blocks;
  grid.shared_bytes = shared_bytes;
  return grid;
}

template <class Body>
void run_body(const void* args) {
  Body::run(*static_cast<const typename Body::Args*>(args));
}

template <class Body>
void launch(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
  launch_grid(grid_of<Body>(blocks, shared_bytes), run_body<Body>, &args);
}

template <class Body>
void launch_together(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
  launch_grid_together(grid_of<Body>(blocks, shared_bytes), run_body<Body>, &args);
}

// For the templates that take the sequence of launches from a Launcher.
struct Launcher {
  template <class Body>
  void launch(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
    if (!is_told()) shim::launch<Body>(blocks, shared_bytes, args);
  }
  template <class Body>
  void launch_together(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
    if (!is_told()) shim::launch_together<Body>(blocks, shared_bytes, args);
  }

  template <class Body>
  size_t most_shared() const {
    return Body::kSharedBytes < device_shared() ? Body::kSharedBytes : device_shared();
  }

  // The host sees what a kernel tells it so many launches later; none: it does not look. One word
  // for all launchers, which keeps what earlier ones were told.
  std::optional<int64_t> host_lag = 0;
  void watch(uint64_t*& notice, uint64_t& ticket) {
    static uint64_t word = 0, tickets = 0;
    notice = nullptr;
    if (is_captured || !host_lag) return;
    notice_ = notice = &word;
    ticket_ = ticket = kernels::kTold * ++tickets;
    late_ = 0;
  }

  // Launches are done when they have been made: kernels must have told so.
  void follow(int32_t round) const {
    if (notice_ != nullptr && *notice_ - ticket_ <= uint64_t(round))
      throw std::runtime_error("round " + std::to_string(round) + " has not told that it began");
  }

  // A graph's loop: its launches are made once, the device repeats them with the same arguments.
  bool is_captured = false;
  bool repeats() const { return is_captured; }
  template <class Launches>
  void repeat(const Launches& launches) {
    for (bool goes_on = true; goes_on;) launches(reinterpret_cast<uint64_t>(&goes_on));
  }

 private:
  bool is_told() {
    return notice_ != nullptr && *notice_ == ticket_ + kernels::kAllDone && late_++ >= *host_lag;
  }

  const uint64_t* notice_ = nullptr;
  uint64_t ticket_ = 0;
  int64_t late_ = 0;
};

// What a kernel tells the host.
inline void tell_host(uint64_t* word, uint64_t value) { *word = value; }

// What a kernel says of the loop that it is in.
inline void set_loop(uint64_t loop, bool goes_on) { *reinterpret_cast<bool*>(loop) = goes_on; }

}  // namespace mvnrob::shim
