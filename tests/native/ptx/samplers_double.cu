// The samplers of mvn_cdf's float64 kernels by themselves, as csrc/cuda/mvn_cdf_double.cu has them
// among others: tests/test_ptx.py wants no more, and nvcc takes a tenth of the time.
#include "cuda/launcher.h"
#include "kernels/mvn_cdf_sample_blocked.h"
#include "kernels/mvn_cdf_sample_small.h"
#include "kernels/mvn_cdf_sample_tensor_double.h"

namespace mvnrob::cuda {

using kernels::MvnCdfArgs;

template __global__ void kernel<kernels::MvnCdfSampleSmall<double>>(
    const __grid_constant__ MvnCdfArgs);
template __global__ void kernel<kernels::MvnCdfSampleBlocked<double>>(
    const __grid_constant__ MvnCdfArgs);
template __global__ void kernel<kernels::MvnCdfSampleTensorDouble>(
    const __grid_constant__ MvnCdfArgs);

}  // namespace mvnrob::cuda
