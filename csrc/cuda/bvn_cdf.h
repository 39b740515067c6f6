#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mvnrob::cuda {

// out[i] = P(X <= h[i], Y <= k[i]) for correlation rho[i], i < n; float64, contiguous.
cudaError_t launch_bvn_cdf(const double* h, const double* k, const double* rho, double* out,
                           int64_t n, int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
