#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/jac_cov_args.h"
#include "kernels/jac_cov_finalize.h"
#include "kernels/jac_cov_norms.h"
#include "kernels/jac_cov_plan.h"

namespace mvnrob::cuda {

struct JacPlanned {
  cudaError_t error;
  kernels::JacCovPlan plan;
};

// in_t is the type of J's elements: float, double, kernels::BFloat16. `memory` is the plan's
// bytes of device memory, aligned to 256.
template <class in_t>
JacPlanned plan_jac_cov(const kernels::JacArgs& a, int64_t batch, int device);
template <class in_t>
cudaError_t launch_jac_cov(const kernels::JacCovArgs& a, int64_t batch,
                           const kernels::JacCovPlan& plan, void* memory, int device,
                           cudaStream_t stream);
template <class in_t>
cudaError_t launch_jac_norms(const kernels::JacNormsArgs& a, int64_t batch,
                             const kernels::JacPlan& plan, void* memory, int device,
                             cudaStream_t stream);

cudaError_t launch_jac_convert(const float* from, double* to, int64_t count, int device,
                               cudaStream_t stream);
cudaError_t launch_jac_convert(const double* from, float* to, int64_t count, int device,
                               cudaStream_t stream);
cudaError_t launch_jac_finalize(const kernels::JacFinalizeArgs& a, int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
