// The definitions behind jac_cov.h that depend on the type of J, one translation unit for each.
#pragma once
#include "cuda/jac_cov.h"
#include "cuda/launcher.h"
#include "kernels/jac_cov_schedule.h"

namespace mvnrob::cuda {

template <class in_t>
JacPlanned plan_jac_cov(const kernels::JacArgs& a, int64_t batch, int device) {
  Launcher launcher(device, nullptr);
  const kernels::JacCovPlan plan = kernels::jac_cov_plan<in_t>(launcher, a, batch);
  return {launcher.error(), plan};
}

template <class in_t>
cudaError_t launch_jac_cov(const kernels::JacCovArgs& a, int64_t batch,
                           const kernels::JacCovPlan& plan, void* memory, int device,
                           cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_jac_cov<in_t>(launcher, a, batch, plan, memory);
  return launcher.error();
}

template <class in_t>
cudaError_t launch_jac_norms(const kernels::JacNormsArgs& a, int64_t batch,
                             const kernels::JacPlan& plan, void* memory, int device,
                             cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_jac_norms<in_t>(launcher, a, batch, plan, memory);
  return launcher.error();
}

#define MVNROB_JAC_COV_INSTANCE(in_t)                                                              \
  template JacPlanned plan_jac_cov<in_t>(const kernels::JacArgs&, int64_t, int);                   \
  template cudaError_t launch_jac_cov<in_t>(const kernels::JacCovArgs&, int64_t,                   \
                                            const kernels::JacCovPlan&, void*, int, cudaStream_t); \
  template cudaError_t launch_jac_norms<in_t>(const kernels::JacNormsArgs&, int64_t,               \
                                              const kernels::JacPlan&, void*, int, cudaStream_t)

}  // namespace mvnrob::cuda
