// The definitions behind mvn_cdf.h, one translation unit for each type of samples.
#pragma once
#include "cuda/launcher.h"
#include "cuda/mvn_cdf.h"
#include "kernels/mvn_cdf_schedule.h"

namespace mvnrob::cuda {

template <class scalar_t>
MvnCdfSizes mvn_cdf_sizes(const kernels::MvnCdfArgs& a, int device) {
  Launcher launcher(device, nullptr);
  const kernels::Grids grids = kernels::grids_of<scalar_t>(launcher, a, a.rows);
  return {launcher.error(), grids.blocked, grids.united,
          kernels::Workspace<scalar_t>(a, a.rows, grids).bytes};
}

template <class scalar_t>
cudaError_t launch_mvn_cdf(const kernels::MvnCdfArgs& a, const MvnCdfSizes& sizes, void* memory,
                           int device, cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_tile<scalar_t>(launcher, a, {sizes.blocked, sizes.united},
                              static_cast<unsigned char*>(memory));
  return launcher.error();
}

}  // namespace mvnrob::cuda
