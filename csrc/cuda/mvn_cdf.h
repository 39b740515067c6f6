#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/mvn_cdf_args.h"

namespace mvnrob::cuda {

// What one tile of a.rows rows needs.
struct MvnCdfSizes {
  cudaError_t error;
  int64_t blocked, tensor, united;  // blocks of the samplers that keep a history
  int64_t grow;                     // and of the grid that makes factors
  int64_t bytes;
};

// Which samples take their products from the device's tensor cores: a.tensor_pivots and
// a.double_tensor.
cudaError_t find_tensor_cores(int device, kernels::MvnCdfArgs& a);

// scalar_t is the type of the samples. `a` has its input, output and options; `memory` is
// sizes.bytes of device memory, aligned to 256.
template <class scalar_t>
MvnCdfSizes mvn_cdf_sizes(const kernels::MvnCdfArgs& a, int device);
template <class scalar_t>
cudaError_t launch_mvn_cdf(const kernels::MvnCdfArgs& a, const MvnCdfSizes& sizes, void* memory,
                           int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
