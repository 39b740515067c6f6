// Operations of a whole block: every thread calls them, every thread gets the answer. Fixed order
// of combination, so the same bits on every run. Each is a barrier too: what a thread wrote before
// it, every thread sees after it.
#pragma once
#include <climits>

#include "kernels/device.h"

namespace mvnrob::kernels {

struct Indexed {
  double key;
  int index;
};

MVNROB_DEVICE bool goes_before(const Indexed& a, const Indexed& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

MVNROB_DEVICE double warp_sum(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
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
    int integer[kWarps];
  };

  MVNROB_DEVICE explicit Block(Shared& shared) : shared_(shared) {}

  MVNROB_DEVICE int thread() const { return int(threadIdx.x); }
  MVNROB_DEVICE void sync() const {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // The smallest key, ties to the smallest index.
  MVNROB_DEVICE_FN Indexed first(Indexed x) const {
    order_warp();
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const Indexed other{__shfl_xor_sync(kFullWarp, x.key, offset),
                          __shfl_xor_sync(kFullWarp, x.index, offset)};
      if (goes_before(other, x)) x = other;
    }
    if constexpr (kWarps > 1) {
      publish(x.key, x.index);
      for (int w = 0; w < kWarps; ++w) {
        const Indexed other{shared_.real[w], shared_.integer[w]};
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

  MVNROB_DEVICE_FN double max(double x) const { return -first({-x, 0}).key; }
  MVNROB_DEVICE_FN double min(double x) const { return first({x, 0}).key; }

  // The bits that any thread has set.
  MVNROB_DEVICE_FN unsigned any_bits(unsigned bits) const {
    order_warp();
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      bits |= __shfl_xor_sync(kFullWarp, bits, offset);
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
