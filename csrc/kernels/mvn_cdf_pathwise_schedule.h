// The host's part of mvn_cdf_pathwise on a device, as mvn_cdf_schedule.h is of mvn_cdf: the
// planning kernel factors, then slopes are sampled and pulled back.
#pragma once
#include "kernels/mvn_cdf_pathwise.h"
#include "kernels/mvn_cdf_pathwise_blocked.h"
#include "kernels/mvn_cdf_pathwise_cov.h"
#include "kernels/mvn_cdf_pathwise_pull.h"
#include "kernels/mvn_cdf_pathwise_solve.h"
#include "kernels/mvn_cdf_schedule.h"

namespace mvnrob::kernels {

// Whether some plan may have more pivots than a thread of MvnCdfPathwise takes.
inline bool may_be_blocked(const MvnCdfPathwiseArgs& a) {
  return std::min(a.plan.n_order, a.plan.rank()) > kMaxSmallPivots;
}

template <class scalar_t>
int64_t pathwise_scratch_bytes(const MvnCdfPathwiseArgs& a) {
  const int64_t small = MvnCdfPathwise<scalar_t, false>::scratch_bytes(a.plan.n);
  return may_be_blocked(a)
             ? std::max(small, MvnCdfPathwiseBlocked<scalar_t, false>::scratch_bytes(a.plan.n))
             : small;
}

// Blocks of samples, which keep something each: no more than can have work, or than two GiB serve.
struct PathwiseGrids {
  int64_t sample;
  Grids plan;
};

template <class scalar_t, class Launcher>
PathwiseGrids pathwise_grids(Launcher& launcher, const MvnCdfPathwiseArgs& a, int64_t rows) {
  using Sample = MvnCdfPathwise<scalar_t, false>;
  using Blocked = MvnCdfPathwiseBlocked<scalar_t, false>;
  const bool blocked = may_be_blocked(a);
  const int64_t resident = blocked
                               ? launcher.template resident_blocks<Blocked>(Blocked::kSharedBytes)
                               : launcher.template resident_blocks<Sample>(Sample::kSharedBytes);
  const int64_t items = blocked ? Blocked::items(a, rows) : rows * kShifts;
  const int64_t afford =
      (int64_t(1) << 31) / std::max<int64_t>(pathwise_scratch_bytes<scalar_t>(a), 1);
  return {std::max<int64_t>(1, std::min({resident, items, afford})),
          {0, 0, 0, grow_blocks<scalar_t>(launcher, a.plan)}};
}

// A piece of device memory for one tile of rows. Of the samples only a tile of 64 is kept, by each
// block: the sums, 8 * 8 n (2 + n_order) bytes a row where cov is wanted, are most of it.
template <class scalar_t>
struct PathwiseWorkspace {
  Workspace<scalar_t> plan;
  int64_t forced_sums, sums, slots, scratch, inverses, bytes;

  PathwiseWorkspace(const MvnCdfPathwiseArgs& a, int64_t rows, const PathwiseGrids& grids)
      : plan(a.plan, rows, grids.plan) {
    Offsets o;
    constexpr int64_t kAlignment = 256;
    const int64_t n = a.plan.n;
    o.take(plan.bytes, kAlignment);
    forced_sums = o.take(int64_t(sizeof(SampleSums)) * kShifts * rows, kAlignment);
    sums = o.take(8 * rows * kShifts * n * a.width, kAlignment);
    const int64_t chunks = may_be_blocked(a) ? rows * kShifts * kPathwiseChunks : 0;
    slots = o.take(8 * chunks * pathwise_slot_size(n), kAlignment);
    scratch = o.take(grids.sample * pathwise_scratch_bytes<scalar_t>(a), kAlignment);
    inverses =
        o.take(has_products(a) ? 8 * rows * cov_tiles(a.plan.n_order) * kCovTile * kCovTile : 0,
               kAlignment);
    bytes = o.end();
  }

  void place(MvnCdfPathwiseArgs& a, unsigned char* base) const {
    plan.place(a.plan, base);
    a.plan.forced_sums = reinterpret_cast<SampleSums*>(base + forced_sums);
    a.sums = reinterpret_cast<double*>(base + sums);
    a.slots = reinterpret_cast<double*>(base + slots);
    a.scratch = base + scratch;
    a.scratch_bytes = pathwise_scratch_bytes<scalar_t>(a);
    a.inverses = reinterpret_cast<double*>(base + inverses);
  }
};

// One block for each of the items of every row, the long ones first where they differ: the device
// hands them out.
template <class Body, class Launcher>
void launch_items(Launcher& launcher, const MvnCdfPathwiseArgs& a, int64_t items,
                  size_t shared_bytes = Body::kSharedBytes) {
  constexpr int64_t kMost = 1 << 24;
  launcher.template launch<Body>(unsigned(std::min(a.plan.rows * items, kMost)), shared_bytes, a);
}

// From the sums to limits and covariance.
template <class Launcher>
void pull_back(Launcher& launcher, const MvnCdfPathwiseArgs& a) {
  launch_items<MvnCdfPathwisePull>(launcher, a, 1);
  if (!a.wants_cov()) return;
  launch_items<MvnCdfPathwiseBars>(launcher, a, MvnCdfPathwiseBars::items(a));
  if (!has_products(a)) {
    using Small = MvnCdfPathwiseSmallCov;
    launch_items<Small>(launcher, a, 1, Small::shared_bytes(a.plan.n));
    return;
  }
  using Multiply = MvnCdfPathwiseSolve<CovStep::kMultiply>;
  using SolveRows = MvnCdfPathwiseSolve<CovStep::kSolveRows>;
  using SolveColumns = MvnCdfPathwiseSolve<CovStep::kSolveColumns>;
  using Write = MvnCdfPathwiseWriteCov;
  launch_items<Multiply>(launcher, a, Multiply::items(a));
  launch_items<SolveRows>(launcher, a, SolveRows::items(a));
  launch_items<SolveColumns>(launcher, a, SolveColumns::items(a));
  launch_items<Write>(launcher, a, Write::items(a));
}

template <class scalar_t, bool tilted, class Launcher>
void launch_samples(Launcher& launcher, const MvnCdfPathwiseArgs& a, unsigned blocks) {
  using Sample = MvnCdfPathwise<scalar_t, tilted>;
  using Blocked = MvnCdfPathwiseBlocked<scalar_t, tilted>;
  launcher.template launch<Sample>(blocks, Sample::kSharedBytes, a);
  if (may_be_blocked(a)) launcher.template launch<Blocked>(blocks, Blocked::kSharedBytes, a);
}

template <class scalar_t, int plan_threads, class Launcher>
void launch_pathwise(Launcher& launcher, MvnCdfPathwiseArgs a, const PathwiseGrids& grids) {
  using Plan = MvnCdfPlan<scalar_t, plan_threads>;
  const size_t plan_bytes = launcher.template most_shared<Plan>();
  if (a.plan.factor_shared == 0) a.plan.factor_shared = int32_t(plan_bytes);
  const int64_t resident = launcher.template resident_blocks<Plan>(plan_bytes);
  const auto blocks = unsigned(std::max<int64_t>(1, std::min(a.plan.rows, resident)));
  // One block more, which fills the generators.
  launcher.template launch<Plan>(blocks + 1, plan_bytes, a.plan);
  launch_grow<scalar_t>(launcher, a.plan, grids.plan);
  if constexpr (sizeof(scalar_t) == 8) {  // only float64 samples are tilted
    if (a.plan.tilt) launch_samples<scalar_t, true>(launcher, a, unsigned(grids.sample));
  }
  if (!a.plan.tilt) launch_samples<scalar_t, false>(launcher, a, unsigned(grids.sample));
  pull_back(launcher, a);
}

// One tile, with memory of PathwiseWorkspace(a, a.plan.rows, grids).bytes.
template <class scalar_t, class Launcher>
void run_pathwise_tile(Launcher& launcher, MvnCdfPathwiseArgs a, const PathwiseGrids& grids,
                       unsigned char* memory) {
  PathwiseWorkspace<scalar_t>(a, a.plan.rows, grids).place(a, memory);
  a.plan.quantiles = plan::quantiles();
  a.plan.launch_round = 0;
  a.plan.last_round = 1;
  a.plan.scalar_panels = true;
  a.plan.forced_points = kTileSamples;  // any: the planning kernel does not come to look at them
  const size_t rows = size_t(a.plan.rows), n = size_t(a.plan.n);
  launcher.clear(a.plan.counters, size_t(counter_bytes(a.plan)));
  launcher.clear(a.plan.forced_sums, sizeof(SampleSums) * kShifts * rows);
  // Variables that take no part have no slopes.
  for (double* p : {a.upper, a.lower}) launcher.clear(p, sizeof(double) * kShifts * rows * n);
  if (a.wants_cov())
    for (double* p : {a.cov, a.cov_variance}) launcher.clear(p, sizeof(double) * rows * n * n);
  if (a.plan.n <= 32)
    launch_pathwise<scalar_t, 32>(launcher, a, grids);
  else if (a.plan.n <= 256)
    launch_pathwise<scalar_t, 128>(launcher, a, grids);
  else
    launch_pathwise<scalar_t, kGrowThreads>(launcher, a, grids);
}

}  // namespace mvnrob::kernels
