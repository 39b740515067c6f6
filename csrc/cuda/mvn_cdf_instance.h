// The definitions behind mvn_cdf.h and mvn_cdf_pathwise.h, one translation unit for each type of
// samples.
#pragma once
#include "cuda/launcher.h"
#include "cuda/mvn_cdf.h"
#include "cuda/mvn_cdf_pathwise.h"
#include "kernels/mvn_cdf_pathwise_schedule.h"
#include "kernels/mvn_cdf_schedule.h"

namespace mvnrob::cuda {

template <class scalar_t>
MvnCdfSizes mvn_cdf_sizes(const kernels::MvnCdfArgs& a, int device) {
  Launcher launcher(device, nullptr);
  const kernels::Grids grids = kernels::grids_of<scalar_t>(launcher, a, a.rows);
  return {launcher.error(), grids.blocked, grids.tensor,
          grids.united,     grids.grow,    kernels::Workspace<scalar_t>(a, a.rows, grids).bytes};
}

template <class scalar_t>
cudaError_t launch_mvn_cdf(const kernels::MvnCdfArgs& a, const MvnCdfSizes& sizes, void* memory,
                           int device, cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_tile<scalar_t>(launcher, a, {sizes.blocked, sizes.tensor, sizes.united, sizes.grow},
                              static_cast<unsigned char*>(memory));
  return launcher.error();
}

template <class scalar_t>
PathwiseSizes pathwise_sizes(const kernels::MvnCdfPathwiseArgs& a, int device) {
  Launcher launcher(device, nullptr);
  const auto grids = kernels::pathwise_grids<scalar_t>(launcher, a, a.plan.rows);
  return {launcher.error(), grids.sample, grids.plan.grow,
          kernels::PathwiseWorkspace<scalar_t>(a, a.plan.rows, grids).bytes};
}

template <class scalar_t>
cudaError_t launch_pathwise(const kernels::MvnCdfPathwiseArgs& a, const PathwiseSizes& sizes,
                            void* memory, int device, cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_pathwise_tile<scalar_t>(launcher, a, {sizes.sample, {0, 0, 0, sizes.grow}},
                                       static_cast<unsigned char*>(memory));
  return launcher.error();
}

}  // namespace mvnrob::cuda
