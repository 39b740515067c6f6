// Operations of a whole grid whose blocks are all resident (a cooperative launch): those of a block
// (block.h), a barrier of the grid each.
//
// A block reduces first, writes what it has to global memory, and after the barrier every warp
// reduces what all blocks have written. Two sets of slots in turn: a block writes one again only
// after the barrier of the other, before which all have read it.
#pragma once
#if defined(__CUDACC__)
#include <cooperative_groups.h>
#endif

#include "kernels/block.h"

namespace mvnrob::kernels {

// Every thread of the grid waits for all others, and sees what they have written.
MVNROB_DEVICE void grid_sync() {
#if defined(__CUDACC__)
  cooperative_groups::this_grid().sync();
#else
  shim::grid_sync();
#endif
}

// Of blocks of `threads` threads.
template <int threads>
class Grid {
 public:
  static constexpr int kWarps = threads / kWarp;

  // What a block needs in global memory, whatever it holds.
  struct Slot {
    Placed first;
    int integer;
    int kept[kWarps];
  };
  static int64_t slot_bytes(int64_t blocks) { return 2 * blocks * int64_t(sizeof(Slot)); }

  MVNROB_DEVICE Grid(const Block<threads>& block, void* slots)
      : block_(block), slots_(static_cast<Slot*>(slots)) {}

  static constexpr bool kIsGrid = true;
  static constexpr int kThreads = threads;  // of a block
  // Warp after warp from block to block, so that work of fewer threads is for all multiprocessors.
  MVNROB_DEVICE int thread() const { return warp() * kWarp + lane(); }
  MVNROB_DEVICE int size() const { return int(gridDim.x) * threads; }
  MVNROB_DEVICE const Block<threads>& block() const { return block_; }
  MVNROB_DEVICE void sync() const { grid_sync(); }

  template <class T>
  MVNROB_DEVICE_FN T first(T x) const {
    x = block_.first(x);
    Slot* slots = next_slots();
    if (threadIdx.x == 0) static_cast<T&>(slots[blockIdx.x].first) = x;
    sync();
    for (unsigned b = lane(); b < gridDim.x; b += kWarp) {
      const T& other = slots[b].first;
      if (goes_before(other, x)) x = other;
    }
    return warp_first(x);
  }

  MVNROB_DEVICE_FN double max(double x) const { return -first(Indexed{-x, 0}).key; }
  MVNROB_DEVICE_FN double min(double x) const { return first(Indexed{x, 0}).key; }

  MVNROB_DEVICE_FN int sum(int x) const {
    const Slot* slots = share(block_.sum(x));
    x = 0;
    for (unsigned b = lane(); b < gridDim.x; b += kWarp) x += slots[b].integer;
    return warp_sum(x);
  }

  MVNROB_DEVICE_FN unsigned any_bits(unsigned bits) const {
    const Slot* slots = share(int(block_.any_bits(bits)));
    for (unsigned b = lane(); b < gridDim.x; b += kWarp) bits |= unsigned(slots[b].integer);
    return warp_any_bits(bits);
  }

  MVNROB_DEVICE_FN int rank(bool keep, int& total) const {
    const unsigned votes = __ballot_sync(kFullWarp, keep);
    Slot* slots = next_slots();
    if (lane() == 0) slots[blockIdx.x].kept[threadIdx.x / kWarp] = __popc(votes);
    sync();
    int before = 0;
    total = 0;
    for (int w = lane(); w < kWarps * int(gridDim.x); w += kWarp) {
      const int kept = slots[unsigned(w) % gridDim.x].kept[unsigned(w) / gridDim.x];
      total += kept;
      if (w < warp()) before += kept;
    }
    total = warp_sum(total);
    return warp_sum(before) + __popc(votes & ((1u << lane()) - 1));
  }

 private:
  MVNROB_DEVICE int lane() const { return int(threadIdx.x % kWarp); }
  MVNROB_DEVICE int warp() const { return int(threadIdx.x / kWarp * gridDim.x + blockIdx.x); }

  MVNROB_DEVICE Slot* next_slots() const {
    set_ ^= 1;
    return slots_ + set_ * gridDim.x;
  }
  MVNROB_DEVICE const Slot* share(int x) const {
    Slot* slots = next_slots();
    if (threadIdx.x == 0) slots[blockIdx.x].integer = x;
    sync();
    return slots;
  }

  const Block<threads>& block_;
  Slot* slots_;
  mutable unsigned set_ = 0;  // of the last operation
};

}  // namespace mvnrob::kernels
