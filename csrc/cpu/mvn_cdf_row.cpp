#include "cpu/mvn_cdf_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cpu/closed_form.h"
#include "plan/variable.h"

namespace mvnrob {

namespace {

template <class scalar_t>
class Integrator {
 public:
  Integrator(const RowInput& input, uint64_t seed, const RowOptions& options, RowWorkspace& w,
             Series<scalar_t>& series, const Runner& run)
      : input_(input), seed_(seed), options_(options), w_(w), series_(series), run_(run) {}

  RowResult integrate() {
    double largest = 0;
    for (double mass : w_.all.mass) largest = std::max(largest, mass);
    const int64_t columns = input_.cov.is_factor() ? input_.cov.factor_columns : input_.n;
    plan::Step step =
        plan::begin(plan_, options_, int32_t(w_.all.variable.size()), largest, int32_t(columns),
                    is_rounded() ? 0 : w_.all.merged, int32_t(input_.n));
    while (step != plan::Step::done) step = take(step);
    if (plan_.status == Status::no_closed_form)
      throw std::invalid_argument(
          "mvn_cdf: method must be auto or sov for a row of more than 3 variables that are not "
          "independent blocks of one factor, got closed_form");
    return plan::result(plan_);
  }

 private:
  // Entries are known to float32 only: their rounding is the input's and not the integral's.
  bool is_rounded() const { return w_.all.entry_error > plan::entry_error(true); }

  plan::Step take(plan::Step step) {
    switch (step) {
      case plan::Step::screen:
        return screen();
      case plan::Step::closed_form:
        return close();
      case plan::Step::one_factor:
        return integrate_blocks();
      case plan::Step::factor:
        return factor();
      case plan::Step::nearest:
        return nearest();
      case plan::Step::rank_one:
        return rank_one();
      case plan::Step::sample:
        return sample();
      case plan::Step::done:
        break;
    }
    return plan::Step::done;
  }

  plan::Step screen() {
    mvnrob::screen(w_.all, plan_, w_.kept);
    const plan::Step step = plan::screened(plan_, options_);
    if (step != plan::Step::factor) return step;
    if (plan::looks_for_blocks(plan_, options_, double(input_.cov.factor_columns))) {
      blocks_ = w_.one_factor.recognise(w_.kept, input_.cov);
      return start_factor(plan::recognised(plan_, options_, blocks_), w_.kept);
    }
    return start_factor(step, w_.kept);
  }

  plan::Step start_factor(plan::Step step, const Problem& problem) {
    if (step == plan::Step::factor) w_.factor.start(problem, input_.cov);
    return step;
  }

  plan::Step integrate_blocks() {
    const plan::ProductOfBlocks p = w_.one_factor.integrate();
    if (!p.found) return start_factor(plan::without_blocks(plan_, options_), w_.kept);
    if (blocks_ == plan::ExactBlocks::all)
      return plan::closed(plan_, options_, p.value, p.complement, p.error_of_smaller(),
                          p.known_log_value(), p.log_error, p.log_slope);
    w_.one_factor.take_rest(w_.rest);
    double mass = 0, largest = 0;
    for (const double one : w_.rest.mass) {
      mass += one;
      largest = std::max(largest, one);
    }
    return start_factor(
        plan::separated(plan_, options_, p.value, p.complement, p.log_value, p.error, p.log_error,
                        int32_t(w_.rest.variable.size()), mass, largest),
        w_.rest);
  }

  plan::Step close() {
    const math::BoxProbability p = closed_form(w_.kept, input_.cov);
    if (p.nan) return plan::failed(plan_, Status::nan);
    if (!p.consistent) return plan::failed(plan_, Status::indefinite);
    return plan::closed(plan_, options_, p.value, p.complement, p.error, p.log_value, p.log_error,
                        p.log_slope);
  }

  plan::Step factor() {
    const Advanced advanced = w_.factor.advance(plan_.target);
    if (advanced != Advanced::yes && plan_.order == plan::PivotOrder::nearest) {
      w_.factor.start_again({});
      return plan::nearest_failed(plan_);
    }
    if (advanced == Advanced::nan) return plan::failed(plan_, Status::nan);
    if (advanced == Advanced::indefinite) return plan::failed(plan_, Status::indefinite);
    const plan::Step step = plan::factored(plan_, options_, w_.factor.facts());
    if (step != plan::Step::sample) return step;
    if (plan_.tilted) {
      const bool nearest = plan_.order == plan::PivotOrder::nearest;
      w_.tilt.find(w_.factor, nullptr, nearest ? &w_.nearest.multipliers() : nullptr);
      plan::tilt_found(plan_, w_.tilt.found());
      w_.series_double.start_tilted(w_.factor, plan_.skip_limit, seed_, options_.points, w_.tilt);
    } else if (plan_.unites) {
      w_.samples_of_union.start(w_.factor, seed_, options_.points);
    } else {
      series_.start(w_.factor, plan_.skip_limit, seed_, options_.points);
    }
    return step;
  }

  plan::Step nearest() {
    const plan::Step step = plan::nearest_found(plan_, options_, w_.nearest.find(w_.factor));
    if (step == plan::Step::factor) w_.factor.start_again(w_.nearest.multipliers());
    return step;
  }

  plan::Step rank_one() {
    return plan::ranked(plan_, options_, w_.factor.facts(), w_.factor.interval());
  }

  plan::Step sample() {
    const plan::Quantiles& quantiles = plan::quantiles();
    const SampleSums* sums = series_.sums();
    if (plan_.unites) {
      w_.samples_of_union.extend(plan_.next, run_);
      sums = w_.samples_of_union.sums();
    } else {
      series_.extend(plan_.next, run_);
    }
    return plan::looked(plan_, options_, quantiles, w_.factor.facts(), sums);
  }

  const RowInput& input_;
  const uint64_t seed_;
  const RowOptions& options_;
  RowWorkspace& w_;
  Series<scalar_t>& series_;
  const Runner& run_;
  plan::RowPlan plan_;
  plan::ExactBlocks blocks_ = plan::ExactBlocks::none;  // of those kept
};

RowResult integrate_prepared(const RowInput& input, uint64_t seed, const RowOptions& options,
                             RowWorkspace& w, const Runner& run) {
  if (options.samples_float32())
    return Integrator<float>(input, seed, options, w, w.series_float, run).integrate();
  return Integrator<double>(input, seed, options, w, w.series_double, run).integrate();
}

}  // namespace

RowResult integrate_row(const RowInput& input, uint64_t seed, const RowOptions& options,
                        RowWorkspace& w, const Runner& run) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  Prepared prepared = w.all.read(input);
  if (prepared == Prepared::integrate && options.method != Method::sov)
    prepared = w.all.merge(input);
  switch (prepared) {
    case Prepared::nan:
      return {nan, nan, nan, nan, nan, Status::nan, 0, 0, 0};
    case Prepared::indefinite:
      return {nan, nan, nan, nan, nan, Status::indefinite, 0, 0, 0};
    case Prepared::zero: {
      const double half = 0.5 * w.all.most;
      return {half, 1 - half, std::log(half), half, half > 0 ? infinity : 0, Status::exact, 0,
              0,    0};
    }
    case Prepared::one:
      return {1, 0, 0, 0, 0, Status::exact, 0, 0, 0};
    case Prepared::integrate:
      break;
  }
  RowResult result = integrate_prepared(input, seed, options, w, run);
  // A float64 matrix that was computed in float32 is indefinite by float32 rounding: judge it as
  // one.
  const double single = plan::entry_error(false);
  if (result.status == Status::indefinite && w.all.entry_error < single) {
    w.all.entry_error = single;
    result = integrate_prepared(input, seed, options, w, run);
  }
  return result;
}

}  // namespace mvnrob
