// Bodies with one deliberate bug each, and what reports it.
#pragma once
#include "shim_good.h"

namespace shim_tests {

constexpr unsigned kBadThreads = 64;

struct BadArgs {
  double* out;  // of 2 blocks of kBadThreads threads
};

// A body of kBadThreads threads; run is given shared memory of a double per thread.
#define SHIM_BODY(Name)                            \
  struct Name {                                    \
    using Args = BadArgs;                          \
    static constexpr int kThreads = kBadThreads;   \
    MVNROB_DEVICE_FN static void run(const Args&); \
  };                                               \
  MVNROB_DEVICE_FN void Name::run([[maybe_unused]] const BadArgs& args)

MVNROB_DEVICE size_t position() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }

template <class Body, bool together = false>
void run_bad() {
  std::vector<double> out(2 * kBadThreads);
  const auto launch = together ? shim::launch_together<Body> : shim::launch<Body>;
  launch(2, kBadThreads * sizeof(double), {out.data()});
  // Where a body has an answer, it is this.
  for (size_t i = 0; i < out.size(); ++i) expect(out[i] == double(i % kBadThreads), "value", i);
}

// Right when threads run in their natural order, each after those that it reads.
SHIM_BODY(OrderDependent) {
  double* x = dynamic_shared<double>();
  x[threadIdx.x] = threadIdx.x;
  args.out[position()] = threadIdx.x == 0 ? 0 : x[threadIdx.x - 1] + 1;
}

// A shuffle brings the lanes together but orders no memory: __syncwarp is missing.
SHIM_BODY(ShuffleAsBarrier) {
  double* x = dynamic_shared<double>();
  x[threadIdx.x] = threadIdx.x;
  __shfl_sync(kFullWarp, 0, 0);
  args.out[position()] = x[threadIdx.x ^ 1] + (threadIdx.x % 2 == 0 ? -1 : 1);
}

SHIM_BODY(BarrierInBranch) {
  if (threadIdx.x < 40) __syncthreads();
}

SHIM_BODY(TwoBarriers) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

SHIM_BODY(LanesLeft) {
  if (threadIdx.x % 32 >= 16) return;
  __shfl_xor_sync(kFullWarp, threadIdx.x, 1);
}

SHIM_BODY(DivergentShuffle) {
  unsigned x = threadIdx.x;
  if (x % 32 < 16) {
    x = __shfl_xor_sync(kFullWarp, x, 1);
  } else {
    x = __shfl_down_sync(kFullWarp, x, 1u);
  }
}

SHIM_BODY(WarpAgainstBlock) {
  if (threadIdx.x < 48) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

SHIM_BODY(PartialMask) { __ballot_sync(0xffffu, 1); }

SHIM_BODY(Overrun) {
  double* x = dynamic_shared<double>();
  if (threadIdx.x == 5) x[kBadThreads] = 0;
}

SHIM_BODY(Unwritten) { args.out[position()] = dynamic_shared<double>()[threadIdx.x]; }

SHIM_BODY(MisalignedCopy) {
  copy_async16(reinterpret_cast<char*>(dynamic_shared<double>()) + 8, args.out);
}

SHIM_BODY(MisalignedHalfCopy) {
  copy_async8(reinterpret_cast<char*>(dynamic_shared<double>()) + 4, args.out);
}

SHIM_BODY(CopyOutside) { copy_async16(dynamic_shared<double>() + kBadThreads, args.out); }

SHIM_BODY(GridBarrierAlone) { shim::grid_sync(); }

// Of a cooperative launch: one block leaves, or waits elsewhere.
SHIM_BODY(BlockLeft) {
  if (blockIdx.x == 1) return;
  shim::grid_sync();
}

SHIM_BODY(TwoGridBarriers) {
  if (blockIdx.x == 1) {
    shim::grid_sync();
  } else {
    shim::grid_sync();
  }
}

SHIM_BODY(ThrowsBesideOthers) {
  shim::grid_sync();
  if (blockIdx.x == 1 && threadIdx.x == 33) throw std::domain_error("thrown by a body");
  shim::grid_sync();
}

SHIM_BODY(Throws) {
  __syncthreads();
  if (threadIdx.x == 33) throw std::domain_error("thrown by a body");
  __syncthreads();
}

SHIM_BODY(SignedOverflow) {
  volatile int x = 0x7fffffff;
  x = x + int(threadIdx.x);
  args.out[position()] = threadIdx.x;
}
#undef SHIM_BODY

// What the report contains: of a plain build, under AddressSanitizer and
// UndefinedBehaviorSanitizer, under ThreadSanitizer. Empty: no report.
struct Bad {
  const char* name;
  void (*run)();
  const char *plain, *address, *thread;
};

constexpr char kStuck[] = "cannot go on";
constexpr char kAlone[] = "its launch is not cooperative";
constexpr char kLeft[] = "BlockLeft has ended, but block 0 waits at grid_sync (shim_bad.h:";
constexpr char kApart[] = "TwoGridBarriers waits at grid_sync (shim_bad.h:";
constexpr char kRace[] = "ThreadSanitizer: data race";
constexpr char kUnwaited[] = "no copy_async_wait covers";

inline const Bad kBad[] = {
    {"no_barrier", [] { check_block_sum(kBadThreads, 2, Bug::kNoBarrier); }, "wrong sum",
     "wrong sum", kRace},
    {"no_barrier_after_copy", [] { check_transpose(kBadThreads, 2, Bug::kNoBarrier); },
     "wrong element", "wrong element", kRace},
    {"no_barrier_before_copy", [] { check_transpose(kBadThreads, 2, Bug::kNoBarrierBeforeCopy); },
     "wrong element", "wrong element", kRace},
    {"no_wait", [] { check_transpose(kBadThreads, 2, Bug::kNoWait); }, kUnwaited, kUnwaited,
     kUnwaited},
    {"order_dependent", run_bad<OrderDependent>, "", "", kRace},
    {"shuffle_as_barrier", run_bad<ShuffleAsBarrier>, "", "", kRace},
    {"barrier_in_branch", run_bad<BarrierInBranch>, kStuck, kStuck, kStuck},
    {"two_barriers", run_bad<TwoBarriers>, kStuck, kStuck, kStuck},
    {"lanes_left", run_bad<LanesLeft>, kStuck, kStuck, kStuck},
    {"divergent_shuffle", run_bad<DivergentShuffle>, kStuck, kStuck, kStuck},
    {"warp_against_block", run_bad<WarpAgainstBlock>, kStuck, kStuck, kStuck},
    {"partial_mask", run_bad<PartialMask>, "mask must be", "mask must be", "mask must be"},
    {"overrun", run_bad<Overrun>, "wrote to byte 51", "heap-buffer-overflow", "wrote to byte 51"},
    {"unwritten", run_bad<Unwritten>, "wrong value", "wrong value", "wrong value"},
    {"misaligned_copy", run_bad<MisalignedCopy>, "must be aligned", "must be aligned",
     "must be aligned"},
    {"misaligned_half_copy", run_bad<MisalignedHalfCopy>, "must be aligned to 8",
     "must be aligned to 8", "must be aligned to 8"},
    {"copy_outside", run_bad<CopyOutside>, "must point into", "must point into", "must point into"},
    {"no_barrier_of_the_grid", [] { check_neighbours(kBadThreads, 2, Bug::kNoBarrier); },
     "wrong neighbour", "wrong neighbour", kRace},
    {"grid_barrier_alone", run_bad<GridBarrierAlone>, kAlone, kAlone, kAlone},
    {"block_left", run_bad<BlockLeft, true>, kLeft, kLeft, kLeft},
    {"two_grid_barriers", run_bad<TwoGridBarriers, true>, kApart, kApart, kApart},
    {"throws_beside_others", run_bad<ThrowsBesideOthers, true>, "thrown by a body",
     "thrown by a body", "thrown by a body"},
    {"throws", run_bad<Throws>, "thrown by a body", "thrown by a body", "thrown by a body"},
    {"signed_overflow", run_bad<SignedOverflow>, "", "signed integer overflow", ""},
};

}  // namespace shim_tests
