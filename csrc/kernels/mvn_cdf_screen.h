// Reads a row, standardises, screens. Collective over a block.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_multiples.h"
#include "plan/ordering.h"
#include "plan/screening.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

struct ScreenShared {
  unsigned long long units[plan::kScreenBuckets];
  plan::ScreenCut cut;
};

// Classifies the row, merges multiples and begins its plan.
template <class scalar_t, int threads>
MVNROB_DEVICE_FN void begin_row(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                                RowState& s) {
  const double entry_error = plan::entry_error(a.is_double);
  double largest_variance = 0;
  for (int32_t i = block.thread(); i < a.n; i += threads)
    largest_variance = math::max(a.covariance(row, i, i), largest_variance);
  largest_variance = block.max(largest_variance);
  unsigned facts = 0;
  for (int32_t i = block.thread(); i < a.n; i += threads)
    facts |= read_unmerged(a, row, i, largest_variance, entry_error).facts;
  facts = block.any_bits(facts);
  bool impossible = (facts & plan::kImpossible) != 0, merged = false;
  double rest = 0, most = impossible ? 0 : HUGE_VAL;
  if (a.n > 1 && a.n <= plan::kMostToMerge && !a.order && a.options.method != Method::sov &&
      !impossible && !(facts & (plan::kNanInput | plan::kIndefinite)))
    merged = Multiples<scalar_t, threads>(a, row, block, entry_error).merge(most, rest);
  impossible = most < HUGE_VAL;
  double active = 0, largest_mass = 0;
  for (int32_t i = block.thread(); i < a.n; i += threads) {
    const plan::Variable v = read_variable<scalar_t>(a, row, i, entry_error, merged);
    if (!v.active) continue;
    active += 1;
    largest_mass = math::max(plan::mass_outside(v.upper, v.lower), largest_mass);
  }
  active = block.sum(active);
  largest_mass = block.max(largest_mass);
  if (block.thread() == 0) {
    s.plan = plan::RowPlan{};
    s.facts = {};
    s.merged = false;
    s.facts.entry_error = entry_error;
    s.facts.double_error = plan::entry_error(true);
    if (facts & plan::kNanInput) {
      s.plan.step = plan::failed(s.plan, Status::nan);
    } else if (facts & plan::kIndefinite) {
      s.plan.step = plan::failed(s.plan, Status::indefinite);
    } else if (a.order &&
               ((facts & plan::kImpossible) ||
                (a.names_pivots(row) ? (facts & plan::kZeroVariance) != 0 : active == 0))) {
      s.plan.step = plan::failed(s.plan, Status::nan);
    } else if (!a.order && (impossible || active == 0)) {
      s.plan.best.value = impossible ? 0.5 * most : 1;
      s.plan.best.complement = 1 - s.plan.best.value;
      s.plan.best.error = impossible ? 0.5 * most : 0;
      s.plan.status = Status::exact;
      s.plan.step = plan::Step::done;
    } else {
      s.merged = merged;
      s.plan.step = plan::begin(s.plan, a.options, int32_t(active), largest_mass, a.rank(),
                                a.is_double ? rest : 0, a.n);
    }
  }
  block.sync();
}

// Keeps the variables that plan.tau does not let go, in order, as the factor's rows.
template <class scalar_t, int threads>
MVNROB_DEVICE_FN void screen_row(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                                 ScreenShared& shared, RowState& s) {
  const RowMemory<scalar_t> m(a, row);
  const double tau = s.plan.tau, entry_error = s.facts.entry_error;
  const bool merged = s.merged;
  for (int b = block.thread(); b < plan::kScreenBuckets; b += threads) shared.units[b] = 0;
  block.sync();
  // A negative variance was found by begin_row, so the largest one does not matter here.
  if (tau > 0) {
    for (int32_t i = block.thread(); i < a.n; i += threads) {
      const plan::Variable v = read_variable<scalar_t>(a, row, i, entry_error, merged);
      if (!v.active) continue;
      const double mass = plan::mass_outside(v.upper, v.lower);
      if (mass <= tau)
        atomicAdd(&shared.units[plan::screen_bucket(mass, tau)],
                  static_cast<unsigned long long>(plan::screen_units(mass, tau)));
    }
    block.sync();
  }
  if (block.thread() == 0) shared.cut = plan::screen_cut(shared.units);
  block.sync();
  const plan::ScreenCut cut = shared.cut;

  int kept = 0;
  double mass_sum = 0, largest = 0;
  unsigned facts = 0;
  for (int32_t first = 0; first < a.n; first += threads) {
    const int32_t i = first + block.thread();
    plan::Variable v{0, 0, 0, false, 0};
    double mass = 0;
    bool keep = false;
    if (i < a.n) {
      v = read_variable<scalar_t>(a, row, i, entry_error, merged);
      if (a.names_pivots(row)) {  // every variable is a row, whatever its limits
        v.inverse_sd = 1 / ::sqrt(a.covariance(row, i, i));
        v.upper = a.limit(a.upper, row, i) * v.inverse_sd;
        v.lower = a.lower ? a.limit(a.lower, row, i) * v.inverse_sd : -HUGE_VAL;
        keep = true;
      } else if (v.active && a.order) {
        keep = true;
      } else if (v.active) {
        mass = plan::mass_outside(v.upper, v.lower);
        const bool beyond = plan::is_beyond(v.upper, v.lower);
        keep = !plan::screened_out(mass, tau, cut, beyond);
        if (!keep && mass == 0 && !beyond) facts |= plan::kUnderflows;
      }
    }
    int total = 0;
    const int k = kept + block.rank(keep, total);
    kept += total;
    if (!keep) continue;
    facts |= v.facts;
    mass_sum += mass;
    largest = math::max(mass, largest);
    m.variable()[k] = i;
    m.group()[k] = -1;
    m.inverse_sd()[k] = v.inverse_sd;
    m.upper()[k] = v.upper;
    m.lower()[k] = v.lower;
    m.variance()[k] = 1;
    m.mean()[k] = 0;
    m.variance_error()[k] = first_error(a, s);
    if (a.is_factor()) m.reference()[k] = 1;
  }
  facts = block.any_bits(facts);
  mass_sum = block.sum(mass_sum);
  largest = block.max(largest);
  if (block.thread() == 0) {
    s.rectangular = (facts & plan::kRectangular) != 0;
    s.live = kept;
    s.restarts = false;
    s.facts.variables = kept;
    s.facts.pivots = 0;
    s.facts.exhausted = false;
    s.facts.neglected = s.plan.merged;
    s.plan.kept = kept;
    s.plan.dropped = plan::dropped_mass(tau, cut, (facts & plan::kUnderflows) != 0);
    s.plan.mass = mass_sum;
    s.plan.largest = largest;
    s.plan.step = plan::screened(s.plan, a.options);
    if (a.order) {
      s.plan.step = plan::Step::factor;
      s.plan.target = a.n_order;
      s.plan.tilted = a.tilt != nullptr;
    }
  }
  block.sync();
}

}  // namespace mvnrob::kernels
