// The end of a pass of a captured graph's loop over the rounds of mvn_cdf: counts it, and lets the
// loop go on while rows are not done. The last round leaves none.
//
// Mapping: one thread. Limiter: the launch.
#pragma once
#include "kernels/device.h"
#include "kernels/mvn_cdf_args.h"

namespace mvnrob::kernels {

struct MvnCdfNextPass {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 1;
  static constexpr int kResidentBlocks = 1;
  static constexpr size_t kSharedBytes = 0;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int32_t planned = ++*a.passes;  // the round whose plan this pass made
    set_loop(a.loop, a.counters[planned + 1].active > 0);
  }
};

}  // namespace mvnrob::kernels
