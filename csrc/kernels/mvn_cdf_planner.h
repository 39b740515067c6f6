// A row's way from what the last samples said to the next samples or to the end, through screening,
// factor and program as far as the plan asks for them; collective over a team, a block or a whole
// grid. What takes a number of operations for each variable only is done by one block of a grid.
#pragma once
#include "kernels/mvn_cdf_factor.h"
#include "kernels/mvn_cdf_nearest.h"
#include "kernels/mvn_cdf_one_factor.h"
#include "kernels/mvn_cdf_pack.h"
#include "kernels/mvn_cdf_screen.h"
#include "kernels/mvn_cdf_tilt.h"
#include "kernels/mvn_cdf_union.h"

namespace mvnrob::kernels {

// Team is of blocks of `threads` threads. The state is a block's own copy of the row's, or for a
// grid where that is kept between launches.
template <class scalar_t, int threads, class Team>
class RowPlanner {
 public:
  MVNROB_DEVICE RowPlanner(const MvnCdfArgs& a, int64_t row, const Team& team, ScreenShared& screen,
                           RowState& s)
      : a_(a), row_(row), team_(team), screen_(screen), s_(s) {}

  // Adds the samples of the last round, chunk after chunk, and decides.
  MVNROB_DEVICE void look() {
    const RowMemory<scalar_t> m(a_, row_);
    for (int shift = team_.thread(); shift < kShifts; shift += team_.size()) {
      SampleSums sums = m.totals()[shift];
      for (int c = 0; c < s_.program.chunks; ++c)
        sums.add(m.slots()[int64_t(shift) * a_.layout.max_chunks + c]);
      m.totals()[shift] = sums;
    }
    team_.sync();
    if (team_.thread() == 0) {
      if (a_.order) {
        for (int shift = 0; shift < kShifts; ++shift)
          a_.forced_sums[row_ * kShifts + shift] = m.totals()[shift];
        s_.plan.step = Step::done;
      } else {
        s_.plan.step = plan::looked(s_.plan, a_.options, a_.quantiles, s_.facts, m.totals());
      }
    }
    team_.sync();
  }

  // Takes steps until samples, a closed form or the grid are wanted, or nothing is.
  MVNROB_DEVICE void advance() {
    for (;;) {
      // One thread writes the step, all read it: nobody may run ahead and write the next one.
      const Step step = s_.plan.step;
      team_.sync();
      if (step == Step::screen) {
        by_one_block([&](const Block<threads>& block) {
          screen_row<scalar_t>(a_, row_, block, screen_, s_);
          if (s_.plan.step == Step::factor && !a_.order) try_blocks(block);
        });
      } else if (step == Step::factor) {
        if (s_.plan.rest != s_.facts.variables)
          by_one_block([&](const Block<threads>& block) {
            keep_rest<scalar_t, threads>(a_, row_, block, s_);
          });
        if (kTilts && s_.restarts) begin_factor_anew();
        if (is_for_the_grid()) break;
        factor();
      } else if (kTilts && step == Step::nearest) {
        find_nearest_point();
      } else if (step == Step::rank_one) {
        bound_one_pivot();
      } else {
        break;
      }
    }
    if (team_.thread() == 0) leave();
  }

 private:
  using Step = plan::Step;
  static constexpr bool kTilts = sizeof(scalar_t) == 8;  // samples: only float64 ones

  // The others wait: until all have read what decides that it works, which it may write, and until
  // it has.
  template <class Work>
  MVNROB_DEVICE void by_one_block(const Work& work) const {
    if constexpr (Team::kIsGrid) {
      team_.sync();
      if (blockIdx.x == 0) work(team_.block());
      team_.sync();
    } else {
      work(team_);
    }
  }

  // Whether the whole grid makes the factor's next columns: one row after another, so that what it
  // spends on a pivot counts for all of them. Of speed only: both make the same factor. In the last
  // round no grid follows.
  MVNROB_DEVICE bool is_for_the_grid() const {
    if constexpr (!Team::kIsGrid && threads == kGrowThreads)
      return a_.grown != nullptr && a_.round() < a_.last_round &&
             numbers_of_pivot(a_, s_.facts.variables, s_.facts.pivots, s_.plan.target) >=
                 double(a_.grow_from) * double(a_.planned_rows());
    return false;
  }

  // Independent blocks of one factor have exact answers; a row without any may have to give up
  // here.
  MVNROB_DEVICE_FN void try_blocks(const Block<threads>& block) {
    if (!plan::looks_for_blocks(s_.plan, a_.options, a_.factor_columns)) return;
    const plan::ExactBlocks blocks =
        OneFactorFinder<scalar_t, threads>(a_, row_, block, s_).recognise();
    if (block.thread() == 0) s_.plan.step = plan::recognised(s_.plan, a_.options, blocks);
    block.sync();
  }

  // As many columns as the plan asks for, and what its samples need of them.
  MVNROB_DEVICE_FN void factor() {
    FactorKernel<scalar_t, Team>(a_, row_, team_, s_).advance();
    if (s_.plan.step != Step::sample) return;
    if (s_.plan.unites)
      start_union<scalar_t>(a_, row_, team_, s_);
    else
      Packer<scalar_t, Team>(a_, row_, team_, s_).pack();
    if constexpr (kTilts) {
      if (s_.plan.tilted) tilt_row<scalar_t>(a_, row_, team_, s_);
    }
  }

  MVNROB_DEVICE void find_nearest_point() {
    const RowMemory<scalar_t> m(a_, row_);
    const plan::FoundNearest found =
        find_nearest(NearestFinder<Team>(NearestMemory(a_, m, s_), team_));
    if (team_.thread() == 0) {
      s_.plan.step = plan::nearest_found(s_.plan, a_.options, found);
      // Forced samples are taken whatever they will say.
      if (a_.order) s_.plan.step = Step::factor, s_.plan.order = plan::PivotOrder::nearest;
      s_.restarts = s_.plan.step == Step::factor;
    }
    team_.sync();
  }

  MVNROB_DEVICE_FN void begin_factor_anew() {
    const RowMemory<scalar_t> m(a_, row_);
    const double error = first_error(a_, s_);
    for (int i = anew(team_.thread()); i < s_.facts.variables; i += team_.size()) {
      m.group()[i] = -1;
      m.variance()[i] = 1;
      m.mean()[i] = 0;
      m.variance_error()[i] = error;
      if (a_.is_factor()) m.reference()[i] = 1;
    }
    team_.sync();  // all have read what one changes now
    if (team_.thread() == 0) {
      s_.live = s_.facts.variables;
      s_.facts.pivots = 0;
      s_.facts.exhausted = false;
      s_.facts.neglected = s_.plan.merged;
      s_.restarts = false;
    }
    team_.sync();
  }

  // Every row is a multiple of the one pivot: the probability of an interval.
  MVNROB_DEVICE_FN void bound_one_pivot() {
    const RowMemory<scalar_t> m(a_, row_);
    double upper = HUGE_VAL, lower = -HUGE_VAL;
    for (int i = anew(team_.thread()); i < s_.facts.variables; i += team_.size()) {
      const double divisor = m.factor()[i];
      const double high = (divisor > 0 ? m.upper()[i] : m.lower()[i]) / divisor;
      const double low = (divisor > 0 ? m.lower()[i] : m.upper()[i]) / divisor;
      upper = math::min(high, upper);
      lower = math::max(low, lower);
    }
    upper = team_.min(upper);
    lower = team_.max(lower);
    if (team_.thread() == 0) {
      s_.plan.step = plan::ranked(s_.plan, a_.options, s_.facts, {lower, upper});
    }
    team_.sync();
  }

  // One thread: hands the row on to the samplers, the closed form or the grid, or writes its
  // result.
  MVNROB_DEVICE_FN void leave() {
    Step step = s_.plan.step;
    const int32_t round = a_.round();
    if (round == a_.last_round && step != Step::done) {  // out of rounds: keeps status max_points
      if (step == Step::sample)                          // these will not be taken
        s_.plan.n_points -= kShifts * (s_.plan.next - s_.plan.points);
      step = Step::done;
    }
    if (step == Step::done) {
      if (a_.order)
        write_forced();
      else
        write(plan::result(s_.plan));
      return;
    }
    RoundCounters& now = a_.counters[round];
    if (step == Step::factor) {
      a_.grown[atomicAdd(&now.grown, 1u)] = row_;
    } else if (step == Step::closed_form) {
      a_.closed[atomicAdd(&now.closed, 1u)] = row_;
    } else if (step == Step::one_factor) {
      a_.factored[atomicAdd(&now.factored, 1u)] = row_;
    } else if (step == Step::sample) {
      schedule(now);
    }
    if constexpr (!Team::kIsGrid) *a_.template at<RowState>(row_, a_.layout.state) = s_;
    if (step == Step::factor) return;  // the grid brings it here again
    RoundCounters& next = a_.counters[round + 1];
    a_.active[(round + 1) & 1][atomicAdd(&next.active, 1u)] = row_;
  }

  MVNROB_DEVICE void schedule(RoundCounters& now) {
    Program& p = s_.program;
    p.first = s_.plan.points;
    p.tiles = int32_t((s_.plan.next - s_.plan.points) / kTileSamples);
    p.chunk_tiles = (p.tiles + a_.layout.max_chunks - 1) / a_.layout.max_chunks;
    p.chunks = (p.tiles + p.chunk_tiles - 1) / p.chunk_tiles;
    const uint64_t streams = uint64_t(kShifts) * uint64_t(p.chunks);
    if (s_.plan.unites)
      enter(now.united, a_.united, streams);
    else if (p.pivots <= kMaxSmallPivots)
      enter(now.small, a_.small, streams);
    else if (p.tensor)
      enter(now.tensor, a_.tensor, tensor_items<scalar_t>(streams));
    else
      enter(now.blocked, a_.blocked, (streams + kStreamsPerBlock - 1) / kStreamsPerBlock);
  }

  // One addition gives both the place in the list and the first item, so the list is sorted.
  MVNROB_DEVICE void enter(unsigned long long& counter, WorkEntry* list, uint64_t items) {
    const uint64_t before =
        atomicAdd(&counter, (1ull << kItemBits) + static_cast<unsigned long long>(items));
    list[entries_of(before)] = WorkEntry{items_of(before), row_};
  }

  MVNROB_DEVICE void write_forced() {
    if (s_.plan.status != Status::nan && s_.plan.status != Status::indefinite) return;
    for (int shift = 0; shift < kShifts; ++shift)
      a_.forced_sums[row_ * kShifts + shift] = {NAN, NAN, NAN, NAN, NAN};
  }

  MVNROB_DEVICE void write(const RowResult& r) {
    if (a_.is_double) {
      static_cast<double*>(a_.prob)[row_] = r.prob;
      static_cast<double*>(a_.complement)[row_] = r.complement;
      static_cast<double*>(a_.error)[row_] = r.error;
      static_cast<double*>(a_.log_prob)[row_] = r.log_prob;
      static_cast<double*>(a_.log_error)[row_] = r.log_error;
    } else {
      // A float32 answer is rounded: half an ulp of it belongs to the error.
      const double rounding = r.error == 0 ? 0 : 6e-8 * math::max(r.prob, r.complement);
      static_cast<float*>(a_.prob)[row_] = float(r.prob);
      static_cast<float*>(a_.complement)[row_] = float(r.complement);
      static_cast<float*>(a_.error)[row_] = float(r.error + rounding);
      const double log_rounding = r.log_error == 0 ? 0 : 6e-8 * ::fabs(r.log_prob);
      static_cast<float*>(a_.log_prob)[row_] = float(r.log_prob);
      static_cast<float*>(a_.log_error)[row_] = float(r.log_error + log_rounding);
    }
    a_.status[row_] = int64_t(r.status);
    a_.n_points[row_] = r.n_points;
    a_.n_active[row_] = r.n_active;
    a_.n_pivots[row_] = r.n_pivots;
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  ScreenShared& screen_;
  RowState& s_;
};

}  // namespace mvnrob::kernels
