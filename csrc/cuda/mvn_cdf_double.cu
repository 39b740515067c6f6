#include "cuda/mvn_cdf_instance.h"

namespace mvnrob::cuda {

template MvnCdfSizes mvn_cdf_sizes<double>(const kernels::MvnCdfArgs&, int);
template cudaError_t launch_mvn_cdf<double>(const kernels::MvnCdfArgs&, const MvnCdfSizes&, void*,
                                            int, cudaStream_t);

template PathwiseSizes pathwise_sizes<double>(const kernels::MvnCdfPathwiseArgs&, int);
template cudaError_t launch_pathwise<double>(const kernels::MvnCdfPathwiseArgs&,
                                             const PathwiseSizes&, void*, int, cudaStream_t);

}  // namespace mvnrob::cuda
