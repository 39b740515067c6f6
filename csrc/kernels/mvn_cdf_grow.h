// The planning kernel of mvn_cdf for what takes one block long, the factor of a large row and the
// program made of it: the whole grid goes on with a row that mvn_cdf_plan.h has left to it, one
// after another.
//
// Mapping: a cooperative launch of a block for each multiprocessor; a thread for each row of the
// factor, three barriers of the grid a pivot. Limiter: those barriers and the latency of a column's
// reads, for a whole factor also the multiply-adds of mvn_cdf_trailing.h (bench/cuda_floor_grow.py
// counts them). Measured on an H100, samples included: 42 ms at n = 2,048 and 1.26 s at 16,384,
// with what mvn_cdf_plan.h says of that day.
#pragma once
#include "kernels/grid.h"
#include "kernels/mvn_cdf_planner.h"

namespace mvnrob::kernels {

template <class scalar_t>
struct MvnCdfGrow {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = kGrowThreads;
  static constexpr int kResidentBlocks = 1;
  using Team = Grid<kThreads>;
  struct Shared {
    typename Block<kThreads>::Shared block;
    ScreenShared screen;
    unsigned done;  // rows
  };
  static constexpr size_t kSharedBytes = least_factor_shared(kThreads, sizeof(Shared));
  static_assert(sizeof(Shared) <= kFactorReserve);

  static MVNROB_DEVICE void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const Block<kThreads> block(shared.block);
    const Team grid(block, a.grow_slots);
    // In shared memory and counted anew for each row: registers are dear.
    if (block.thread() == 0) shared.done = 0;
    block.sync();
    while (shared.done < a.counters[a.round()].grown) {
      const int64_t row = a.grown[shared.done];
      RowState& s = *a.template at<RowState>(row, a.layout.state);
      RowPlanner<scalar_t, kThreads, Team>(a, row, grid, shared.screen, s).advance();
      block.sync();
      if (block.thread() == 0) ++shared.done;
      block.sync();
    }
  }
};

}  // namespace mvnrob::kernels
