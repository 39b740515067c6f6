// The host's part of jac_cov on a device: which kernels run, in which order, on what part of the
// work. Nothing here waits for the device.
//
// Launcher gives: launch<Body>(blocks, shared_bytes, args) and resident_blocks<Body>(shared_bytes),
// how many blocks the device holds at once.
#pragma once
#include <type_traits>

#include "kernels/jac_cov_finalize.h"
#include "kernels/jac_cov_narrow.h"
#include "kernels/jac_cov_norms.h"
#include "kernels/jac_cov_plan.h"
#include "kernels/jac_cov_sum.h"
#include "kernels/jac_cov_tensor.h"
#include "kernels/jac_cov_tile.h"
#include "kernels/jac_cov_triangle.h"

namespace mvnrob::kernels {

// ---- norms ------------------------------------------------------------------------------------

template <class in_t, class Launcher>
void run_jac_norms(Launcher& launcher, JacNormsArgs whole, int64_t batch, const JacPlan& plan,
                   void* memory) {
  whole.chunks = static_cast<double*>(memory);
  const int64_t classes = whole.jac.classes;
  jac_parts(whole, batch, jac_chunks<in_t>(whole.jac.columns), plan, [&](const JacNormsArgs& a) {
    launcher.template launch<JacNorms<in_t>>(
        jac_grid(JacNorms<in_t>::blocks(a.jac.problems, classes, a.jac.chunks)), 0, a);
    launcher.template launch<JacNormsSum>(
        jac_grid((a.jac.problems * classes + JacNormsSum::kThreads - 1) / JacNormsSum::kThreads), 0,
        a);
  });
}

// ---- S += sum of u u^T ------------------------------------------------------------------------

// Tensor cores take float32 and bfloat16, in two parts that need the norms.
template <class in_t>
constexpr bool kOnTensorCores = sizeof(JacCompute<in_t>) == 4;
template <class in_t>
using JacCovTiled = std::conditional_t<kOnTensorCores<in_t>, JacCovTensor<in_t>, JacCovTile<in_t>>;

// Tiles that are few go chunk by chunk, those that fill the device twice all chunks in one block;
// the bits are the same.
template <class in_t, class Launcher>
JacCovPlan jac_cov_plan(Launcher& launcher, const JacArgs& a, int64_t batch) {
  using Tile = JacCovTiled<in_t>;
  constexpr int64_t element = sizeof(JacCompute<in_t>);
  const int64_t chunks = jac_chunks<in_t>(a.columns);
  JacCovPlan plan{};
  if (a.classes <= JacCovTriangle<in_t>::kMostClasses) {
    plan.sums = jac_plan(batch, chunks, a.classes * a.classes * element);
    return plan;
  }
  if constexpr (kOnTensorCores<in_t>) {
    plan.norms = jac_norms_plan<in_t>(a, batch);
    plan.squares = batch * a.classes * int64_t(sizeof(double));
  }
  const int64_t tiles = JacTiles(a.classes, Tile::kSide).count();
  const int64_t resident = launcher.template resident_blocks<Tile>(Tile::kSharedBytes);
  if (chunks == 1 || batch * tiles >= 2 * resident)
    plan.sums = {batch, chunks, 0};
  else
    plan.sums = jac_plan(batch, chunks, tiles * Tile::kSide * Tile::kSide * element);
  return plan;
}

// `memory` is plan.bytes() of device memory.
template <class in_t, class Launcher>
void run_jac_cov(Launcher& launcher, JacCovArgs whole, int64_t batch, const JacCovPlan& plan,
                 void* memory) {
  using Narrow = JacCovNarrow<in_t>;
  using Triangle = JacCovTriangle<in_t>;
  using Tile = JacCovTiled<in_t>;
  using Sum = JacCovSum<JacCompute<in_t>>;
  const int64_t classes = whole.jac.classes;
  auto* const bytes = static_cast<unsigned char*>(memory);
  whole.sums = plan.sums.bytes > 0 ? memory : nullptr;
  whole.side = classes <= Triangle::kMostClasses ? classes : Tile::kSide;
  if (plan.squares > 0) {
    auto* const squares = reinterpret_cast<double*>(bytes + plan.sums.bytes);
    whole.squares = squares;
    run_jac_norms<in_t>(launcher, {whole.jac, nullptr, squares}, batch, plan.norms,
                        bytes + plan.sums.bytes + plan.squares);
  }
  jac_parts(whole, batch, jac_chunks<in_t>(whole.jac.columns), plan.sums, [&](const JacCovArgs& a) {
    const int64_t pieces = a.jac.problems * a.jac.chunks;
    if (classes <= Narrow::kMostClasses) {
      launcher.template launch<Narrow>(jac_grid(Narrow::blocks(pieces)), 0, a);
    } else if (classes <= Triangle::kMostClasses) {
      launcher.template launch<Triangle>(jac_grid(pieces), Triangle::kSharedBytes, a);
    } else {
      const int64_t tiles = JacTiles(classes, Tile::kSide).count();
      const int64_t units = tiles * (a.sums == nullptr ? a.jac.problems : pieces);
      launcher.template launch<Tile>(jac_grid(units), Tile::kSharedBytes, a);
    }
    if (a.sums != nullptr) {
      const int64_t entries = a.jac.problems * classes * classes;
      launcher.template launch<Sum>(jac_grid((entries + Sum::kThreads - 1) / Sum::kThreads), 0, a);
    }
  });
}

template <class from_t, class to_t, class Launcher>
void run_jac_convert(Launcher& launcher, const from_t* from, to_t* to, int64_t count) {
  using Convert = JacCovConvert<from_t, to_t>;
  launcher.template launch<Convert>(jac_grid((count + Convert::kThreads - 1) / Convert::kThreads),
                                    0, {from, to, count});
}

// ---- finalize ---------------------------------------------------------------------------------

// a.inverse: batch * (classes - 1) numbers of device memory.
template <class Launcher>
void run_jac_finalize(Launcher& launcher, const JacFinalizeArgs& a) {
  const int64_t n = a.classes - 1;
  const int64_t limits = (a.batch * n + JacCovLimits::kThreads - 1) / JacCovLimits::kThreads;
  launcher.template launch<JacCovLimits>(jac_grid(limits), 0, a);
  launcher.template launch<JacCovCorr>(jac_grid(JacCovCorr::blocks(a.batch * n * n)), 0, a);
}

}  // namespace mvnrob::kernels
