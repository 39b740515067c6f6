#include "cuda/bvn_cdf.h"

#include "kernels/bvn_cdf.h"

namespace mvnrob::cuda {

namespace {

constexpr int kThreadsPerBlock = 128;
constexpr int64_t kMaxBlocks = 65535;

__global__ void bvn_cdf_kernel(const double* h, const double* k, const double* rho, double* out,
                               int64_t n) {
  kernels::bvn_cdf(h, k, rho, out, n, int64_t(blockIdx.x) * blockDim.x + threadIdx.x,
                   int64_t(gridDim.x) * blockDim.x);
}

}  // namespace

cudaError_t launch_bvn_cdf(const double* h, const double* k, const double* rho, double* out,
                           int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t blocks = (n + kThreadsPerBlock - 1) / kThreadsPerBlock;
  bvn_cdf_kernel<<<unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreadsPerBlock, 0,
                   stream>>>(h, k, rho, out, n);
  return cudaGetLastError();
}

}  // namespace mvnrob::cuda
