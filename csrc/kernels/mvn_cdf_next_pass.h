// The end of a pass of a captured graph's loop over the rounds of mvn_cdf: counts it, and lets the
// loop go on while rows are not done. The last round leaves none. The last block of the pass's plan
// does it, or where a grid may go on with that plan (mvn_cdf_grow.h) a kernel of its own.
//
// Mapping: one thread. Limiter: the launch.
#pragma once
#include "kernels/device.h"
#include "kernels/mvn_cdf_args.h"

namespace mvnrob::kernels {

// One thread, after everything else of the pass.
MVNROB_DEVICE void end_pass(const MvnCdfArgs& a) {
  const int32_t planned = ++*a.passes;  // the round whose plan this pass made
  // By the L2 cache, which the other blocks have added to.
  set_loop(a.loop, atomicAdd(&a.counters[planned + 1].active, 0u) > 0);
}

// One thread of each block of the pass's plan.
MVNROB_DEVICE void end_plan(const MvnCdfArgs& a) {
  __threadfence();
  if (atomicAdd(&a.counters[a.round()].planned, 1u) == gridDim.x - 1) end_pass(a);
}

struct MvnCdfNextPass {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 1;
  static constexpr int kResidentBlocks = 1;
  static constexpr size_t kSharedBytes = 0;

  static MVNROB_DEVICE_FN void run(const Args& a) { end_pass(a); }
};

}  // namespace mvnrob::kernels
