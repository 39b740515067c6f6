// CUDA's names for a C++ compiler: what kernel bodies may use (csrc/kernels/device.h includes this
// where nvcc is absent). shim/launch.h runs the bodies.
//
// Stricter than the device, which forgives some of it: all threads of a block meet at the same
// barrier in the source, all lanes of a warp at the same collective, and nobody leaves before.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "shim/launch.h"

namespace mvnrob::shim {

// Filled in where a body calls: default arguments belong to the caller.
struct Caller {
  const char* file;
  int line;
  explicit Caller(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

inline Scheduler& running() { return *Scheduler::running(); }

inline unsigned lane() { return threadIdx.x % kWarp; }

inline void check_mask(unsigned mask, const char* name) {
  if (mask != 0xffffffffu) {
    throw std::runtime_error(std::string(name) + ": mask must be 0xffffffff, got " +
                             std::to_string(mask));
  }
}

// Every lane gives a value and reads others by lane.
class Exchange {
 public:
  Exchange(unsigned mask, uint64_t value, const char* name, const Caller& caller)
      : scheduler_(running()), thread_(scheduler_.thread()) {
    check_mask(mask, name);
    const Unseen unseen;
    Block& block = scheduler_.block();
    Group& warp = block.warp(thread_);
    generation_ = warp.generation;
    block.put(thread_, value);
    scheduler_.wait(warp, {name, caller.file, caller.line, false});
  }

  unsigned lanes() const { return scheduler_.block().lanes(thread_ / kWarp); }
  uint64_t from(unsigned lane) const { return scheduler_.block().get(thread_, lane, generation_); }

 private:
  Scheduler& scheduler_;
  unsigned thread_, generation_;
};

// `source` is the lane to read; where the last warp is not full, a lane that is not there gives
// 0xFF bytes (undefined on the device).
template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* name, const Caller& caller) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long> ||
                    std::is_same_v<T, unsigned long> || std::is_same_v<T, long long> ||
                    std::is_same_v<T, unsigned long long> || std::is_same_v<T, float> ||
                    std::is_same_v<T, double>,
                "CUDA has no shuffle for this type");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const Exchange exchange(mask, bits, name, caller);
  bits = source < exchange.lanes() ? exchange.from(source) : ~uint64_t(0);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned ballot(unsigned mask, int predicate, const char* name, const Caller& caller) {
  const Exchange exchange(mask, predicate != 0, name, caller);
  unsigned votes = 0;
  for (unsigned l = 0; l < exchange.lanes(); ++l) votes |= unsigned(exchange.from(l)) << l;
  return votes;
}

// The barrier of a cooperative launch's blocks.
inline void grid_sync(const Caller& caller = Caller()) {
  running().wait_for_blocks({"grid_sync", caller.file, caller.line, true});
}

inline void* dynamic_shared() { return running().grid().shared; }

inline void copy_async(void* shared, const void* global, unsigned bytes, bool there) {
  Scheduler& scheduler = running();
  const Grid& grid = scheduler.grid();
  const auto to = reinterpret_cast<uintptr_t>(shared);
  const auto from = reinterpret_cast<uintptr_t>(global);
  const auto base = reinterpret_cast<uintptr_t>(grid.shared);
  const std::string size = std::to_string(bytes), name = "copy_async" + size;
  if (to % bytes != 0 || from % bytes != 0) {
    throw std::runtime_error(name + ": both ends must be aligned to " + size +
                             " bytes, got shared + " + std::to_string(to - base) +
                             " and a source at " + std::to_string(from % bytes) + " modulo " +
                             size);
  }
  if (to < base || to + bytes > base + grid.shared_bytes) {
    throw std::runtime_error(name + ": shared must point into the block's " +
                             std::to_string(grid.shared_bytes) + " bytes, got offset " +
                             std::to_string(int64_t(to - base)));
  }
  scheduler.block().copies(scheduler.thread()).copy(shared, there ? global : nullptr, bytes);
}

inline void copy_async_commit() { running().block().copies(running().thread()).commit(); }

inline void copy_async_wait(int groups) {
  running().block().copies(running().thread()).wait(unsigned(groups));
}

template <class T, class Better>
T atomic_select(T* address, T value, Better better) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (better(value, old) && !__atomic_compare_exchange_n(address, &old, value, false,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace mvnrob::shim

inline void __syncthreads(mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  auto& scheduler = mvnrob::shim::running();
  scheduler.wait(scheduler.block().all(), {"__syncthreads", caller.file, caller.line, true});
}

inline int __syncthreads_or(int predicate, mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  auto& scheduler = mvnrob::shim::running();
  const unsigned generation = scheduler.block().all().generation;
  if (predicate != 0) {
    const mvnrob::shim::Unseen unseen;
    scheduler.block().any(generation) = 1;
  }
  scheduler.wait(scheduler.block().all(), {"__syncthreads_or", caller.file, caller.line, true});
  return scheduler.block().any(generation);
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  auto& scheduler = mvnrob::shim::running();
  mvnrob::shim::check_mask(mask, "__syncwarp");
  scheduler.wait(scheduler.block().warp(scheduler.thread()),
                 {"__syncwarp", caller.file, caller.line, true});
}

// `width`, a power of two, splits a warp into parts that exchange among themselves. Beyond the end
// of its part a lane gets its own value (shfl_xor: may read earlier parts, not later ones).
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  const unsigned part = mvnrob::shim::lane() & ~unsigned(width - 1);
  return mvnrob::shim::shuffle(mask, value, part + (unsigned(source) & unsigned(width - 1)),
                               "__shfl_sync", caller);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  const unsigned lane = mvnrob::shim::lane();
  const unsigned last = lane | unsigned(width - 1);
  return mvnrob::shim::shuffle(mask, value, lane + delta <= last ? lane + delta : lane,
                               "__shfl_down_sync", caller);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  const unsigned lane = mvnrob::shim::lane();
  const unsigned last = lane | unsigned(width - 1);
  const unsigned source = (lane ^ unsigned(bits)) % mvnrob::shim::kWarp;
  return mvnrob::shim::shuffle(mask, value, source <= last ? source : lane, "__shfl_xor_sync",
                               caller);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  return mvnrob::shim::ballot(mask, predicate, "__ballot_sync", caller);
}

inline int __any_sync(unsigned mask, int predicate,
                      mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  return mvnrob::shim::ballot(mask, predicate, "__any_sync", caller) != 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      mvnrob::shim::Caller caller = mvnrob::shim::Caller()) {
  return mvnrob::shim::ballot(mask, !predicate, "__all_sync", caller) == 0;
}

// By an operation on a number of its own: ThreadSanitizer knows no fences.
inline void __threadfence() {
  static unsigned last = 0;
  __atomic_fetch_add(&last, 1u, __ATOMIC_SEQ_CST);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Relaxed, as on the device: they order nothing else.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomicOr(unsigned* address, unsigned value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
  return mvnrob::shim::atomic_select(address, value, [](unsigned a, unsigned b) { return a > b; });
}
inline unsigned atomicMin(unsigned* address, unsigned value) {
  return mvnrob::shim::atomic_select(address, value, [](unsigned a, unsigned b) { return a < b; });
}
