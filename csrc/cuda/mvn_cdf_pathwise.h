#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/mvn_cdf_pathwise_args.h"

namespace mvnrob::cuda {

// What one tile of a.plan.rows rows needs.
struct PathwiseSizes {
  cudaError_t error;
  int64_t sample;  // blocks of samples
  int64_t grow;    // and of the grid that makes factors
  int64_t bytes;
};

// As of mvn_cdf.h.
template <class scalar_t>
PathwiseSizes pathwise_sizes(const kernels::MvnCdfPathwiseArgs& a, int device);
template <class scalar_t>
cudaError_t launch_pathwise(const kernels::MvnCdfPathwiseArgs& a, const PathwiseSizes& sizes,
                            void* memory, int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
