// jac_cov's kernels run on the shim, launch for launch as on a device.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/jac_cov_schedule.h"
#include "shim/launch.h"

namespace mvnrob::shim {

struct JacCovLauncher : Launcher {
  int64_t resident = 3;

  template <class Body>
  int64_t resident_blocks(size_t) {
    return resident;
  }
};

// Memory that starts as 0xFF bytes, NaNs.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(size_t(bytes) / sizeof(std::max_align_t) + 1) {
    std::memset(memory_.data(), 0xFF, memory_.size() * sizeof(std::max_align_t));
  }
  void* data() { return memory_.data(); }

 private:
  std::vector<std::max_align_t> memory_;
};

// At most `most` problems, and `chunks` chunks, at a time (0: as planned).
inline kernels::JacPlan cut(kernels::JacPlan plan, int64_t most, int64_t chunks) {
  if (plan.bytes == 0) return plan;
  const int64_t each = plan.bytes / (plan.problems * plan.chunks);
  if (most > 0) plan.problems = std::min(plan.problems, most);
  if (chunks > 0) plan.chunks = std::min(plan.chunks, chunks);
  plan.bytes = plan.problems * plan.chunks * each;
  return plan;
}

// a: J, strides, sizes, target.
template <class in_t>
void run_jac_cov(const kernels::JacArgs& a, int64_t batch, double* S, int64_t resident,
                 int64_t problems, int64_t chunks) {
  JacCovLauncher launcher;
  launcher.resident = resident;
  kernels::JacCovArgs args{};
  args.jac = a;
  args.S = S;
  kernels::JacCovPlan plan = kernels::jac_cov_plan<in_t>(launcher, a, batch);
  plan.sums = cut(plan.sums, problems, chunks);
  plan.grams = cut(plan.grams, problems, chunks);
  Scratch memory(plan.bytes());
  kernels::run_jac_cov<in_t>(launcher, args, batch, plan, memory.data());
}

template <class in_t>
void run_jac_norms(const kernels::JacArgs& a, int64_t batch, double* norms, int64_t problems,
                   int64_t chunks) {
  JacCovLauncher launcher;
  kernels::JacNormsArgs args{};
  args.jac = a;
  args.norms = norms;
  const kernels::JacPlan plan = cut(kernels::jac_norms_plan<in_t>(a, batch), problems, chunks);
  Scratch memory(plan.bytes);
  kernels::run_jac_norms<in_t>(launcher, args, batch, plan, memory.data());
}

inline void run_jac_finalize(kernels::JacFinalizeArgs a) {
  JacCovLauncher launcher;
  Scratch memory(a.batch * (a.classes - 1) * 8);
  a.inverse = static_cast<double*>(memory.data());
  kernels::run_jac_finalize(launcher, a);
}

}  // namespace mvnrob::shim
