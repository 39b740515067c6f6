// Operations of a whole block: every thread calls them, every thread gets the answer. Fixed order
// of combination, so the same bits on every run. Each is a barrier too: what a thread wrote before
// it, every thread sees after it.
//
// A block is one kind of team; the other is a grid (grid.h), which has the same operations but sums
// of real numbers: their order, and so their bits, would be that of its size. What both work on
// adds those up in every block of the team, by block().
#pragma once
#include <climits>
#include <type_traits>

#include "kernels/device.h"

namespace mvnrob::kernels {

struct Indexed {
  double key;
  int index;
};

// And where it was found.
struct Placed : Indexed {
  int place;
};

MVNROB_DEVICE bool goes_before(const Indexed& a, const Indexed& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

template <class T>
MVNROB_DEVICE T warp_sum(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

MVNROB_DEVICE double warp_min(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, x, offset);
    if (other < x) x = other;
  }
  return x;
}

MVNROB_DEVICE unsigned warp_any_bits(unsigned bits) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    bits |= __shfl_xor_sync(kFullWarp, bits, offset);
  return bits;
}

// T is Indexed or Placed.
template <class T>
MVNROB_DEVICE T warp_first(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    T other;
    other.key = __shfl_xor_sync(kFullWarp, x.key, offset);
    other.index = __shfl_xor_sync(kFullWarp, x.index, offset);
    if constexpr (std::is_same_v<T, Placed>)
      other.place = __shfl_xor_sync(kFullWarp, x.place, offset);
    if (goes_before(other, x)) x = other;
  }
  return x;
}

// `threads` is a multiple of 32.
template <int threads>
class Block {
  static constexpr int kWarps = threads / kWarp;

 public:
  // What the block needs in shared memory.
  struct Shared {
    double real[kWarps];
    int integer[kWarps], place[kWarps];
  };

  MVNROB_DEVICE explicit Block(Shared& shared) : shared_(shared) {}

  static constexpr bool kIsGrid = false;
  static constexpr int kThreads = threads;
  // Of many threads they have no registers for what would be taken out of loops.
  MVNROB_DEVICE int thread() const {
    return threads == 256 ? anew(int(threadIdx.x)) : int(threadIdx.x);
  }
  MVNROB_DEVICE int size() const { return threads; }
  MVNROB_DEVICE const Block& block() const { return *this; }
  MVNROB_DEVICE void sync() const {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // The smallest key, ties to the smallest index.
  template <class T>
  MVNROB_DEVICE_FN T first(T x) const {
    order_warp();
    x = warp_first(x);
    if constexpr (kWarps > 1) {
      if constexpr (std::is_same_v<T, Placed>) {
        if (thread() % kWarp == 0) shared_.place[thread() / kWarp] = x.place;
      }
      publish(x.key, x.index);
      for (int w = 0; w < kWarps; ++w) {
        T other;
        other.key = shared_.real[w];
        other.index = shared_.integer[w];
        if constexpr (std::is_same_v<T, Placed>) other.place = shared_.place[w];
        if (goes_before(other, x)) x = other;
      }
      sync();
    }
    return x;
  }

  MVNROB_DEVICE_FN double sum(double x) const {
    order_warp();
    x = warp_sum(x);
    if constexpr (kWarps > 1) {
      publish(x, 0);
      x = 0;
      for (int w = 0; w < kWarps; ++w) x += shared_.real[w];
      sync();
    }
    return x;
  }

  MVNROB_DEVICE_FN int sum(int x) const {
    order_warp();
    x = warp_sum(x);
    if constexpr (kWarps > 1) {
      publish(0, x);
      x = 0;
      for (int w = 0; w < kWarps; ++w) x += shared_.integer[w];
      sync();
    }
    return x;
  }

  MVNROB_DEVICE_FN double max(double x) const { return -min(-x); }
  MVNROB_DEVICE_FN double min(double x) const {
    order_warp();
    x = warp_min(x);
    if constexpr (kWarps > 1) {
      publish(x, 0);
      for (int w = 0; w < kWarps; ++w)
        if (shared_.real[w] < x) x = shared_.real[w];
      sync();
    }
    return x;
  }

  // The bits that any thread has set.
  MVNROB_DEVICE_FN unsigned any_bits(unsigned bits) const {
    order_warp();
    bits = warp_any_bits(bits);
    if constexpr (kWarps > 1) {
      publish(0, int(bits));
      for (int w = 0; w < kWarps; ++w) bits |= unsigned(shared_.integer[w]);
      sync();
    }
    return bits;
  }

  // How many threads before this one keep, and how many in all.
  MVNROB_DEVICE_FN int rank(bool keep, int& total) const {
    order_warp();
    const unsigned votes = __ballot_sync(kFullWarp, keep);
    const int lane = thread() % kWarp;
    int before = __popc(votes & ((1u << lane) - 1));
    total = __popc(votes);
    if constexpr (kWarps > 1) {
      publish(0, total);
      total = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w < thread() / kWarp) before += shared_.integer[w];
        total += shared_.integer[w];
      }
      sync();
    }
    return before;
  }

 private:
  // Shuffles exchange registers, not memory; publish() is the barrier of larger blocks.
  MVNROB_DEVICE void order_warp() const {
    if constexpr (kWarps == 1) __syncwarp();
  }

  MVNROB_DEVICE void publish(double real, int integer) const {
    if (thread() % kWarp == 0) {
      shared_.real[thread() / kWarp] = real;
      shared_.integer[thread() / kWarp] = integer;
    }
    sync();
  }

  Shared& shared_;
};

}  // namespace mvnrob::kernels
