// The planning kernel of mvn_cdf: a block takes a row as far as mvn_cdf_planner.h says. A factor
// that takes one block long it leaves to the whole grid (mvn_cdf_grow.h).
//
// Mapping: a warp for each row up to n = 32, 128 or 256 threads beyond; blocks stride over the rows
// that are not done. Limiter: latency of the chain of pivots (an argmin, an exchange, a column
// each) for small rows; for large ones that of a panel's columns, and the panels' products.
// Measured on an H100, whole factors of many rows: about 2 us a row of 99 variables and 300 us one
// of 999. Most of it was waiting: compiled apart from their arguments, these kernels looked up
// where an array lies before each access, and edge tiles of a panel went column by column.
// Hence run() and what it calls is one piece, which finds its arguments in constant memory.
// Measured then: 155 us a row of 999, 20 us a pivot; the first 16 pivots, chosen, took 11 us each,
// nearly all of it a chain of dependent operations and barriers. Hence stretches of columns
// (mvn_cdf_stretch.h). Predicted with them, by a count of that chain: 1.5 to 2.5 us a pivot, and 60
// to 80 us a row of 999 whose order is given; measured 87 us. There warps stand, by ncu's samples,
// a fifth of the time in the panels' products, as long at the loads and stores of their tiles, 13 %
// at the packing of the program for the samples, 11 % at reading the matrix, and the rest in
// stretches.
#pragma once
#include "kernels/mvn_cdf_generators.h"
#include "kernels/mvn_cdf_next_pass.h"
#include "kernels/mvn_cdf_planner.h"
#include "kernels/mvn_cdf_work.h"

namespace mvnrob::kernels {

template <class scalar_t, int threads>
struct MvnCdfPlan {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = threads;
  static constexpr int kResidentBlocks = 384 / threads;
  // Of a graph's loop. Not where a grid may go on, nor for rows that take milliseconds.
  static constexpr bool kEndsPass = threads < kGrowThreads;

  struct Shared {
    typename Block<threads>::Shared block;
    ScreenShared screen;
    RowState state;
    int64_t at;       // of the rows
    unsigned blocks;  // that plan
  };
  static constexpr size_t kSharedBytes = most_factor_shared(threads, sizeof(Shared));
  static_assert(threads != kGrowThreads || sizeof(Shared) <= kFactorReserve);

  static MVNROB_DEVICE void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const Block<threads> block(shared.block);
    if (a.round() == 0 && blockIdx.x == gridDim.x - 1) {  // one more than the first launch's rows
      if (block.thread() == 0) tell_begun(a);
      fill_generators(a, block);
      return;
    }
    // Registers are dear: where a block is lies in shared memory, the round is looked up.
    if (block.thread() == 0) {
      shared.at = blockIdx.x;
      shared.blocks = blocks(a);
    }
    block.sync();
    while (shared.at < a.planned_rows()) {
      const int64_t row = a.round() == 0 ? shared.at : a.active[a.round() & 1][shared.at];
      RowState& s = shared.state;
      RowPlanner<scalar_t, threads, Block<threads>> planner(a, row, block, shared.screen, s);
      if (a.round() == 0) {
        begin_row<scalar_t>(a, row, block, s);
      } else {
        read_state(a, row, block, s);
        if (s.plan.step == plan::Step::sample) planner.look();
      }
      planner.advance();
      block.sync();
      if (block.thread() == 0) shared.at += shared.blocks;
      block.sync();
    }
    if constexpr (kEndsPass)
      if (a.loop != 0) {
        block.sync();  // all have looked up the round, which the last block's end changes
        if (block.thread() == 0) end_plan(a);
      }
  }

 private:
  static MVNROB_DEVICE unsigned blocks(const Args& a) {
    return a.round() == 0 ? gridDim.x - 1 : gridDim.x;
  }

  // Word by word, by all threads: one would want a register for each.
  static MVNROB_DEVICE void read_state(const Args& a, int64_t row, const Block<threads>& block,
                                       RowState& s) {
    static_assert(std::is_trivially_copyable_v<RowState> && sizeof(RowState) % 4 == 0);
    const auto* from = a.template at<const uint32_t>(row, a.layout.state);
    auto* to = reinterpret_cast<uint32_t*>(&s);
    for (int k = anew(block.thread()); k < int(sizeof(RowState) / 4); k += threads) to[k] = from[k];
    block.sync();
  }
};

}  // namespace mvnrob::kernels
