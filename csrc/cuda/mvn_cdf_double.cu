#include "cuda/mvn_cdf_instance.h"

namespace mvnrob::cuda {

cudaError_t find_tensor_cores(int device, kernels::MvnCdfArgs& a) {
  int major = 0, minor = 0, shared = 0;
  cudaError_t error = device_attribute<cudaDevAttrComputeCapabilityMajor>(device, major);
  if (error == cudaSuccess)
    error = device_attribute<cudaDevAttrComputeCapabilityMinor>(device, minor);
  if (error == cudaSuccess)
    error = device_attribute<cudaDevAttrMaxSharedMemoryPerMultiprocessor>(device, shared);
  constexpr int kBlock = int(kernels::MvnCdfSampleTensor::kSharedBytes) + 1024;  // and CUDA's own
  a.tensor_pivots =
      shared >= 2 * kBlock ? kernels::kTensorPivots : kernels::kTensorPivotsOfOneBlock;
  a.double_tensor = error == cudaSuccess && kernels::multiplies_doubles(major, minor);
  return error;
}

template MvnCdfSizes mvn_cdf_sizes<double>(const kernels::MvnCdfArgs&, int);
template cudaError_t launch_mvn_cdf<double>(const kernels::MvnCdfArgs&, const MvnCdfSizes&, void*,
                                            int, cudaStream_t);

template PathwiseSizes pathwise_sizes<double>(const kernels::MvnCdfPathwiseArgs&, int);
template cudaError_t launch_pathwise<double>(const kernels::MvnCdfPathwiseArgs&,
                                             const PathwiseSizes&, void*, int, cudaStream_t);

}  // namespace mvnrob::cuda
