// The host's part of jac_cov on a device: which kernels run, in which order, on what part of the
// work. Nothing here waits for the device.
//
// Launcher gives: launch<Body>(blocks, shared_bytes, args) and resident_blocks<Body>(shared_bytes),
// how many blocks the device holds at once.
#pragma once
#include <cmath>
#include <type_traits>

#include "kernels/jac_cov_finalize.h"
#include "kernels/jac_cov_gram.h"
#include "kernels/jac_cov_narrow.h"
#include "kernels/jac_cov_norms.h"
#include "kernels/jac_cov_plan.h"
#include "kernels/jac_cov_sum.h"
#include "kernels/jac_cov_tensor.h"
#include "kernels/jac_cov_tile.h"
#include "kernels/jac_cov_triangle.h"

namespace mvnrob::kernels {

// ---- norms ------------------------------------------------------------------------------------

// Body is JacNorms or JacNormsProducts.
template <class in_t, class Body = JacNorms<in_t>, class Launcher>
void run_jac_norms(Launcher& launcher, JacNormsArgs whole, int64_t batch, const JacPlan& plan,
                   void* memory) {
  whole.chunks = static_cast<double*>(memory);
  const int64_t classes = whole.jac.classes;
  whole.product_chunks = whole.chunks + plan.problems * plan.chunks * classes;
  jac_parts(whole, batch, jac_chunks<in_t>(whole.jac.columns), plan, [&](const JacNormsArgs& a) {
    launcher.template launch<Body>(jac_grid(Body::blocks(a.jac.problems, classes, a.jac.chunks)), 0,
                                   a);
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
// Problems of bfloat16 are multiplied as they are where they can be (jac_cov_gram.h): both kernels
// are launched, and each leaves the other's problems alone.
template <class in_t>
constexpr bool kByGram = std::is_same_v<in_t, BFloat16>;

// Whether tiles go chunk by chunk: where a block for each would leave more of the device idle in
// its last wave than sums of chunks cost, which come and go through memory. The bits are the same.
// Counted in chunks of a tile; sums take `cost_of_sums` of the time of one.
inline bool jac_by_chunks(int64_t batch, int64_t tiles, int64_t chunks, int64_t resident,
                          const JacPlan& sums, double cost_of_sums) {
  const auto waves = [&](int64_t units) { return double((units + resident - 1) / resident); };
  const double whole = waves(batch * tiles) * double(chunks);
  const double launches = std::ceil(double(batch) / double(sums.problems));
  const int64_t problems = std::min(batch, sums.problems), rest = chunks % sums.chunks;
  const double each = double(chunks / sums.chunks) * waves(problems * tiles * sums.chunks) +
                      (rest > 0 ? waves(problems * tiles * rest) : 0.0);
  const double moved = double(batch * tiles * chunks) / double(resident);
  return launches * each + cost_of_sums * moved < whole;
}

template <class in_t, class Tile, class Launcher>
JacPlan jac_tiles_plan(Launcher& launcher, const JacArgs& a, int64_t batch, int64_t chunks,
                       double cost_of_sums) {
  const int64_t tiles = JacTiles(a.classes, Tile::kSide).count();
  const int64_t resident = launcher.template resident_blocks<Tile>(Tile::kSharedBytes);
  const JacPlan plan =
      jac_plan(batch, chunks, tiles * Tile::kSide * Tile::kSide * sizeof(JacCompute<in_t>));
  if (jac_by_chunks(batch, tiles, chunks, resident, plan, cost_of_sums)) return plan;
  return {batch, chunks, 0};
}

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
    plan.norms = jac_norms_plan<in_t>(a, batch, kByGram<in_t> ? 2 : 1);
    plan.squares = batch * a.classes * int64_t(sizeof(double));
  }
  if constexpr (kByGram<in_t>) {
    plan.products = plan.squares;
    plan.subtracts = batch * int64_t(sizeof(double));  // one uint32 each, and the next aligned
  }
  // Reckoned for 1,000 classes: the sums' bytes and those of S at 2.5 TB/s, beside chunks of 57 us
  // (three products) and 28 us (one) of each block.
  plan.sums = jac_tiles_plan<in_t, Tile>(launcher, a, batch, chunks, 0.15);
  if constexpr (kByGram<in_t>)
    plan.grams = jac_tiles_plan<in_t, JacCovGram>(launcher, a, batch,
                                                  jac_chunks(a.columns, kJacGramChunk), 0.4);
  return plan;
}

// The norms that tiles need, and where they are from `memory` on.
template <class in_t, class Launcher>
void run_jac_tile_norms(Launcher& launcher, JacCovArgs& whole, int64_t batch,
                        const JacCovPlan& plan, unsigned char* memory) {
  auto* const squares = reinterpret_cast<double*>(memory);
  void* const rest = memory + plan.squares + plan.products + plan.subtracts;
  JacNormsArgs norms{whole.jac, nullptr, squares, nullptr, nullptr, nullptr};
  whole.squares = squares;
  if constexpr (kByGram<in_t>) {
    auto* const products = reinterpret_cast<double*>(memory + plan.squares);
    auto* const subtracts = reinterpret_cast<uint32_t*>(memory + plan.squares + plan.products);
    norms.products = products;
    norms.zeros = subtracts;
    whole.products = products;
    whole.subtracts = subtracts;
    run_jac_norms<in_t, JacNormsProducts<in_t>>(launcher, norms, batch, plan.norms, rest);
    const int64_t classes = whole.jac.classes;
    launcher.template launch<JacGramChoice>(
        jac_grid(JacGramChoice::blocks(batch, classes)), 0,
        {whole.jac.target, squares, products, subtracts, batch, classes});
  } else {
    run_jac_norms<in_t>(launcher, norms, batch, plan.norms, rest);
  }
}

// launch(a, pieces) for every part of the work; where each chunk has sums of its own, they are
// added to S.
template <class in_t, class Launcher, class Launch>
void run_jac_parts(Launcher& launcher, JacCovArgs whole, int64_t batch, int64_t chunks,
                   const JacPlan& plan, void* memory, const Launch& launch) {
  using Sum = JacCovSum<JacCompute<in_t>>;
  using TileSum = JacCovTileSum<JacCompute<in_t>>;
  const int64_t classes = whole.jac.classes;
  whole.sums = plan.bytes > 0 ? memory : nullptr;
  jac_parts(whole, batch, chunks, plan, [&](const JacCovArgs& a) {
    launch(a, a.jac.problems * a.jac.chunks);
    if (a.sums == nullptr) return;
    if (classes <= JacCovTriangle<in_t>::kMostClasses) {
      const int64_t entries = a.jac.problems * classes * classes;
      launcher.template launch<Sum>(jac_grid((entries + Sum::kThreads - 1) / Sum::kThreads), 0, a);
    } else {
      const int64_t tiles = JacTiles(classes, a.side).count();
      launcher.template launch<TileSum>(jac_grid(TileSum::blocks(a.jac.problems, tiles)),
                                        TileSum::kSharedBytes, a);
    }
  });
}

// `memory` is plan.bytes() of device memory.
template <class in_t, class Launcher>
void run_jac_cov(Launcher& launcher, JacCovArgs whole, int64_t batch, const JacCovPlan& plan,
                 void* memory) {
  using Narrow = JacCovNarrow<in_t>;
  using Triangle = JacCovTriangle<in_t>;
  using Tile = JacCovTiled<in_t>;
  const int64_t classes = whole.jac.classes;
  whole.side = classes <= Triangle::kMostClasses ? classes : Tile::kSide;
  if (plan.squares > 0)
    run_jac_tile_norms<in_t>(launcher, whole, batch, plan,
                             static_cast<unsigned char*>(memory) + plan.sums_bytes());
  const int64_t tiles = JacTiles(classes, Tile::kSide).count();
  const auto units_of = [&](const JacCovArgs& a, int64_t pieces) {
    return tiles * (a.sums == nullptr ? a.jac.problems : pieces);
  };
  if constexpr (kByGram<in_t>) {
    static_assert(JacCovGram::kSide == Tile::kSide, "they share tiles");
    if (classes > Triangle::kMostClasses) {
      whole.grams = true;
      run_jac_parts<in_t>(launcher, whole, batch, jac_chunks(whole.jac.columns, kJacGramChunk),
                          plan.grams, memory, [&](const JacCovArgs& a, int64_t pieces) {
                            launcher.template launch<JacCovGram>(jac_grid(units_of(a, pieces)),
                                                                 JacCovGram::kSharedBytes, a);
                          });
      whole.grams = false;
    }
  }
  run_jac_parts<in_t>(
      launcher, whole, batch, jac_chunks<in_t>(whole.jac.columns), plan.sums, memory,
      [&](const JacCovArgs& a, int64_t pieces) {
        if (classes <= Narrow::kMostClasses) {
          launcher.template launch<Narrow>(jac_grid(Narrow::blocks(pieces)), 0, a);
        } else if (classes <= Triangle::kMostClasses) {
          launcher.template launch<Triangle>(jac_grid(pieces), Triangle::kSharedBytes, a);
        } else {
          int64_t blocks = units_of(a, pieces);
          // Few problems are left, if any: more blocks that only look would cost and not help.
          if (kByGram<in_t>)
            blocks = std::min(blocks, launcher.template resident_blocks<Tile>(Tile::kSharedBytes));
          launcher.template launch<Tile>(jac_grid(blocks), Tile::kSharedBytes, a);
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
