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

// Whether float64 samples may take their products from the device's tensor cores
// (kernels/tensor.h).
cudaError_t find_double_tensor(int device, bool& found);

// scalar_t is the type of the samples. `a` has its input, output and options; `memory` is
// sizes.bytes of device memory, aligned to 256.
template <class scalar_t>
MvnCdfSizes mvn_cdf_sizes(const kernels::MvnCdfArgs& a, int device);
template <class scalar_t>
cudaError_t launch_mvn_cdf(const kernels::MvnCdfArgs& a, const MvnCdfSizes& sizes, void* memory,
                           int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
