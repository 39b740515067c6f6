// How one row is integrated: a state machine that every backend drives.
//
// The backend screens, factors, samples; after each it reports what it found and is told what to do
// next. All decisions are here, so that all backends take the same ones.
#pragma once
#include <cmath>
#include <cstdint>

#include "math/normal.h"
#include "plan/confidence.h"
#include "plan/estimate.h"
#include "plan/exact_part.h"
#include "plan/nearest_point.h"
#include "plan/options.h"
#include "plan/ordering.h"
#include "plan/screening.h"
#include "plan/tilt.h"

namespace mvnrob::plan {

constexpr int64_t kPilot = kTileSamples;  // points per shift before the first look
constexpr int kFullBelow = 48;            // variables up to which all are sampled at once
constexpr int kFirstPivots = 16;          // otherwise

enum class Step : int32_t {
  screen,       // drop variables within `tau`, then screened()
  closed_form,  // few variables: integrate exactly, then closed()
  one_factor,   // exact independent blocks: closed(), separated() or without_blocks()
  factor,       // advance the factor to `target` pivots, then factored()
  nearest,      // find the point nearest to zero that its rows allow, then nearest_found()
  rank_one,     // one pivot bounds everything: an interval, then ranked()
  sample,       // extend to `next` points of each shift, of the union if it unites; then looked()
  done,
};

// In which order variables become the factor's pivots: the least likely next, or those first that
// hold the nearest point (plan/nearest_point.h), or the former because the latter did not do.
enum class PivotOrder : int32_t { likely, nearest, likely_again };

// Which of the independent blocks that the variables kept fall apart into are exact.
enum class ExactBlocks { none, some, all };

// What the backend knows of the row's factor.
struct FactorFacts {
  int32_t variables, pivots;
  bool exhausted;       // no row has variance left
  double neglected;     // largest variance that was taken as zero
  double entry_error;   // of the correlation
  double double_error;  // entry_error of float64
};

struct RowPlan {
  double largest_of_all = 0;     // mass of the variable most likely to fail
  double tau = 0;                // most mass to screen
  double dropped = 0;            // mass screened
  double mass = 0, largest = 0;  // of the variables kept, later of the rest: the sum, the largest
  double merged = 0;             // largest variance taken as zero between multiples made one
  double skip_limit = 40;        // completed rows farther than this in a whole tile are left out
  double skipped = 0;            // what that may cost
  double tolerance = 0;          // asked for, at the latest estimate
  int32_t all = 0, kept = 0;     // variables before and after screening
  int32_t rest = 0;              // those of them that are not in exact blocks
  ExactPart exact;               // and the answer of those that are, beside a rest
  int32_t given = 0;             // before multiples were made one
  int32_t target = 0;            // pivots wanted
  int32_t rank = INT32_MAX;      // of the covariance, at most
  int32_t pivots = 0;            // of the present factor
  bool unites = false;           // samples the union of the events that a variable fails
  PivotOrder order = PivotOrder::likely;
  bool tilted = false;        // samples are tilted, their weights in units of exp(log_unit)
  bool only_samples = false;  // closed forms have not the digits that are asked for
  double log_unit = 0;
  bool has_saddle = false;                   // otherwise "tilted" samples are plain ones
  double by_rounding = 0, by_groups = 0;     // FoundTilt
  double plain_low = 0, plain_high = 1;      // what plain samples said of p
  int64_t points = 0, next = 0;              // of each shift: sampled, to be sampled
  int64_t n_points = 0;                      // all shifts and plans together
  int32_t pilot_looks = 0, later_looks = 0;  // one budget of confidence for all plans of the row
  Estimate best;                             // the latest estimate
  bool best_tilted = false;                  // whether it is of tilted samples
  double best_log_unit = 0;                  // its value and error are in units of exp of this
  double best_log_value = NAN;               // ln p, where a closed form knows it itself
  double best_log_error = NAN;               // and its error
  double best_dropped = 0;                   // the screened mass of its own plan
  Status status = Status::max_points;
  Step step = Step::screen;
};

namespace detail {

// Beside the absolute one, in the units of p and of 1 - p.
MVNROB_HD double relative_tolerance(const RowOptions& options, double p, double complement) {
  return math::max(options.rel_tol * math::min(p, complement), options.log_tol * p);
}
MVNROB_HD double tolerance(const RowOptions& options, double p, double complement) {
  return math::max(options.abs_tol, relative_tolerance(options, p, complement));
}

// As if 1 - p were the largest single mass, which it is at least.
MVNROB_HD double guess_of_tolerance(const RowPlan& plan, const RowOptions& options) {
  return tolerance(options, math::max(1 - plan.largest_of_all, 0.0), plan.largest_of_all);
}

// The spread over the shifts knows nothing of a corner that no point has met, and where p is near 1
// the integrand is flat but for such corners. N points leave a set of probability 4 / N unseen at
// odds of e^-4, and the integrand is at most 1 - largest there. When few samples carry the sum, the
// range term of the empirical Bernstein bound (Maurer and Pontil 2009) at 99 %, 7/3 ln(200) / N, is
// wanted. Neither is more than what is certain: largest <= 1 - P <= mass.
MVNROB_HD double unseen_points(const Estimate& e) { return e.effective < 50 ? 12.4 : 4.0; }

// How far one sample of 1 - f can lie beyond `largest`: a sample of the union is at most the mass.
MVNROB_HD double range_of_sample(const RowPlan& plan) {
  return plan.unites ? plan.mass : 1 - plan.largest;
}

MVNROB_HD double unseen(const RowPlan& plan, const Estimate& e) {
  const double range =
      unseen_points(e) * range_of_sample(plan) / (double(kShifts) * double(plan.points));
  return math::min(range, plan.mass - plan.largest);
}

// The same for tilted samples, in units of exp(log_unit). In few directions, or where the others
// hang on few, their weights jump, and all shifts count alike. What is not seen there may weigh
// twice what the sum's samples weigh on average, and where few carry the sum what a weight can be
// at the most: about 1, or without a saddle point, where samples are plain, what the least probable
// variable lets it be.
MVNROB_HD double unseen_weight(const RowPlan& plan, const Estimate& e, double unit) {
  const double n = double(kShifts) * double(plan.points);
  const double most =
      plan.has_saddle ? 1.0 : math::max(1 - plan.largest, 0x1p-53) / math::max(unit, 1e-300);
  const double weight = e.effective >= 50 ? math::min(2 * e.value * n / e.effective, most) : most;
  return unseen_points(e) * weight / n;
}

// float32 limits near a narrow interval are wrong by an ulp of the limits, so its error is
// absolute; float64 keeps the digits of p and of 1 - p, neither of which is a difference.
// Samples of the union are added up as 1 - p alone.
MVNROB_HD double rounding(const RowPlan& plan, const RowOptions& options, double small) {
  if (plan.unites) return 1e-12 * small;
  return options.samples_float32() ? 3e-7 : 1e-15 + 1e-12 * small;
}

// Effect of taking a variance s^2 as zero in some of m rows: the limits move by at most about
// s sqrt(2 ln 2m), where P has slope sum phi(limit), at most 1 / sqrt(2 pi) and, since
// phi(u) <= 1.26 (1 + u) Phi(-u), at most 1.26 M (1 + sqrt(2 ln(m / M))) for a mass of M. For
// float64 only: the rounding of a float32 matrix, far larger, is the input's and not the
// integral's.
MVNROB_HD double shift_of(const RowPlan& plan, double m, double variance) {
  return variance > 0 ? ::sqrt(2 * ::log(2 * math::max(m, double(plan.given))) * variance) : 0.0;
}
MVNROB_HD_FN double effect_of(const RowPlan& plan, double mass, double m, double variance) {
  if (variance == 0) return 0;
  mass = math::max(mass, 1e-300);
  const double slope =
      math::min(0.4, 1.26 * mass * (1 + ::sqrt(math::max(2 * ::log(m / mass), 0.0))));
  return slope * shift_of(plan, m, variance);
}
// Of a probability known to `error`, on its logarithm.
MVNROB_HD double log_effect_of(double error, double value) {
  return error == 0 ? 0.0 : error < value ? -::log1p(-error / value) : HUGE_VAL;
}
MVNROB_HD double neglected(const RowPlan& plan, const FactorFacts& facts) {
  return facts.entry_error > facts.double_error
             ? 0
             : effect_of(plan, plan.mass, facts.variables, facts.neglected);
}

// A lattice and Sobol's sequence are at their best at powers of two.
MVNROB_HD int64_t round_up(const RowOptions& options, double points) {
  if (options.points == PointSet::richtmyer)
    return (int64_t(points) + kTileSamples - 1) / kTileSamples * kTileSamples;
  int64_t power = kTileSamples;
  while (double(power) < points) power *= 2;
  return power;
}

// At least double; further when the error, falling like N^-0.7, asks for it.
MVNROB_HD_FN int64_t next_points(const RowPlan& plan, const RowOptions& options, const Estimate& e,
                                 double t, double t_next, double allowed) {
  const double wanted = math::max(allowed - e.bias, 0.3 * allowed);
  const double ratio = 1.1 * e.sampling * (t_next / t) / wanted;
  const double factor = math::min(16.0, math::max(2.0, ::exp(::log(math::max(ratio, 0.0)) / 0.7)));
  int64_t next = round_up(options, double(plan.points) * factor);
  // And enough to bring the unseen corner within what is allowed.
  if (!plan.tilted && allowed < plan.mass - plan.largest) {
    const double range = unseen_points(e) * range_of_sample(plan) / kShifts;
    const double corner = math::min(range / allowed, 16.0 * double(next));
    if (corner > double(next)) next = round_up(options, corner);
  }
  return next;
}

// Multiply-adds of a sample, about: Phi counts 20, a draw 60.
MVNROB_HD double cost_of_sample(double variables, double pivots) {
  return variables * pivots + 20 * variables + 60 * pivots;
}

// Whether the rest of the way is shorter by sampling the union of the events that a variable fails
// (mvn_cdf_union): its samples of 1 - p are spread by at most sqrt(c (mass - c)), c = 1 - p, and
// bounded by the mass (Owen, Maximov and Chertkov 2019, theorem 1), so with p near 1 they are few
// where separation of variables waits for corners.
MVNROB_HD_FN bool union_is_cheaper(const RowPlan& plan, const RowOptions& options,
                                   const Estimate& e, double t, double t_next, double allowed) {
  if (plan.unites || options.method != Method::automatic || !(allowed > 0) || e.complement > 0.2)
    return false;
  const double corner = allowed < plan.mass - plan.largest ? unseen_points(e) / allowed : 0;
  const double wanted = math::max(allowed - e.bias, 0.3 * allowed);
  const double ratio = math::max(1.1 * e.sampling * (t_next / t) / wanted, 1e-3);
  const double points = math::max(double(kShifts) * double(plan.points) * ::exp(::log(ratio) / 0.7),
                                  corner * (1 - plan.largest));
  const double c = math::min(math::max(e.complement, plan.largest), plan.mass);
  const double united =
      math::max(t_next * t_next * (c / allowed) * ((plan.mass - c) / allowed), corner * plan.mass);
  const double m = plan.rest, rank = math::min(m, double(plan.rank));
  // The whole factor first, a third of m^3; then a product of m^2 for each sample.
  const double cost =
      (united + double(kShifts) * double(kPilot) + rank / 3) * cost_of_sample(m, rank);
  return 2 * cost < points * cost_of_sample(m, plan.pivots);
}

// Whether the digits of a small p are asked for: tilted samples have them. They need float64.
MVNROB_HD bool wants_tilt(const RowPlan& plan, const RowOptions& options, const Estimate& e) {
  return !plan.tilted && !plan.unites && options.method == Method::automatic &&
         !options.samples_float32() && e.value < 0.05 && options.relative_to_p() > 0 &&
         options.abs_tol <= options.relative_to_p() * plan.exact.whole(e.value);
}

// Whether the exact blocks' error, which is absolute for those of three variables, leaves no room
// for samples of the rest. Tilted samples of the whole row, or those of its union, have the digits.
MVNROB_HD bool wants_whole(const RowPlan& plan, const RowOptions& options, double v, double small,
                           double allowed) {
  return options.method == Method::automatic && !options.samples_float32() &&
         plan.exact.relative_error * v > math::max(0.5 * allowed, 1e-6 * small);
}

MVNROB_HD Step sample_whole(RowPlan& plan) {
  plan.unites = plan.tilted = false;
  plan.only_samples = true;
  return Step::screen;
}

MVNROB_HD double t_of_next_look(const Quantiles& q, int later_looks) {
  return q.later[later_looks < kLaterLooks ? later_looks : kLaterLooks - 1];
}

MVNROB_HD double t_of_look(RowPlan& plan, const Quantiles& q) {
  if (plan.points == kPilot && plan.pilot_looks < kPilotLooks) {
    ++plan.pilot_looks;
    return q.pilot;
  }
  return t_of_next_look(q, plan.later_looks++);
}

// Screening took more than a relative tolerance, now known better, leaves room for.
MVNROB_HD bool screens_too_much(const RowPlan& plan) {
  return plan.dropped > 0 && 0.5 * plan.dropped > 0.25 * plan.tolerance;
}

// Only what is nothing beside all p that are numbers.
MVNROB_HD bool is_underflown(double dropped) { return dropped > 0 && dropped <= kUnderflown; }

MVNROB_HD Step screen_less(RowPlan& plan) {
  plan.unites = plan.tilted = false;
  plan.tau = screened_mass(0.1 * plan.tolerance);
  return Step::screen;
}

// An estimate of the rest in units of exp(log_unit), as one of the whole row.
MVNROB_HD void keep(RowPlan& plan, const Estimate& e, double log_unit) {
  plan.best = e;
  plan.best.complement = plan.exact.whole_complement(e.complement);
  plan.best.error = plan.exact.whole_error(e.value, e.error);
  plan.best_dropped = plan.dropped;
  plan.best_tilted = plan.tilted;
  plan.best_log_unit = log_unit + plan.exact.log_value;
}

// All of `rest` variables are to be sampled, to a tolerance.
MVNROB_HD Step begin_samples(RowPlan& plan, const RowOptions& options, double tolerance) {
  // m rows left out of a tile, of two tails each, together stay below 1 % of the tolerance.
  const double each = 0.005 * tolerance / plan.rest;
  plan.skip_limit = each > 0 ? -math::ndtri<double>(math::max(each, 1e-300)) : 40.0;
  plan.skipped = plan.skip_limit < 40 ? 0.01 * tolerance : 0;
  plan.target = options.method == Method::sov || plan.rest <= kFullBelow ? plan.rest : kFirstPivots;
  plan.status = Status::max_points;
  return Step::factor;
}

// To `next` points of each shift, as far as max_points lasts; then done.
MVNROB_HD Step sample_to(RowPlan& plan, const RowOptions& options, int64_t next) {
  int64_t left = (options.max_points - plan.n_points) / kShifts + plan.points;
  left = left / kTileSamples * kTileSamples;
  if (next > left) next = left;
  if (next <= plan.points) return Step::done;
  plan.n_points += kShifts * (next - plan.points);
  plan.next = next;
  return Step::sample;
}

}  // namespace detail

// Of `given` variables `all` matter, multiples counted once; largest_of_all is the largest of their
// masses; `rank` is at least that of the covariance.
MVNROB_HD_FN Step begin(RowPlan& plan, const RowOptions& options, int32_t all,
                        double largest_of_all, int32_t rank, double merged, int32_t given) {
  plan.rank = rank;
  plan.given = given;
  plan.merged = merged;
  plan.all = all;
  plan.largest_of_all = largest_of_all;
  // A closed form takes them all.
  const bool exact = all <= 3 || options.method == Method::closed_form;
  plan.tau = exact ? 0 : screened_mass(0.1 * detail::guess_of_tolerance(plan, options));
  return Step::screen;
}

// The exact answer of the variables kept.
// log_value is ln p where the closed form knows it better than by value, otherwise NaN; log_error
// is its error, log_slope how it moves with the limits at most.
MVNROB_HD_FN Step closed(RowPlan& plan, const RowOptions& options, double value, double complement,
                         double error, double log_value, double log_error, double log_slope) {
  if (plan.merged > 0) {  // the limits of multiples that are not exact
    const double moved = detail::effect_of(plan, plan.mass, plan.all, plan.merged);
    const double by_slope = log_slope * detail::shift_of(plan, plan.all, plan.merged);
    error += by_slope < 0.5 ? math::min(moved, value * ::expm1(by_slope)) : moved;
    log_error +=
        math::min(detail::log_effect_of(moved, value), by_slope < 0.5 ? by_slope : HUGE_VAL);
  }
  Estimate e;
  e.value = value;
  e.complement = complement;
  e.error = error;
  plan.tolerance = detail::tolerance(options, value, complement);
  if (detail::screens_too_much(plan)) return detail::screen_less(plan);
  if (detail::is_underflown(plan.dropped) && value < 1e10 * kUnderflown) {
    plan.unites = plan.tilted = false;
    plan.tau = kKeepsAll;
    return Step::screen;
  }
  detail::keep(plan, e, 0);
  plan.best_log_value = log_value;
  plan.best_log_error = log_error;
  const bool small_value = value < 0.05 && log_value != log_value;
  const double small = small_value ? value : complement;
  if (options.method == Method::automatic && !options.samples_float32() && plan.kept > 1 &&
      (small_value || (complement < 0.05 && complement > 1e-290)) &&
      error > math::max(plan.tolerance, 1e-6 * small)) {
    // Its error is absolute. Tilted samples have the digits of p, those of the union of 1 - p, but
    // at the end of the format; neither has six of them.
    return detail::sample_whole(plan);
  }
  plan.pivots = plan.rest = plan.kept;
  plan.status = Status::exact;
  return Step::done;
}

// The backend has looked which blocks are exact (plan/one_factor.h). What they are it integrates;
// what they are not needs samples.
MVNROB_HD Step recognised(RowPlan& plan, const RowOptions& options, ExactBlocks blocks) {
  if (blocks == ExactBlocks::all) return Step::one_factor;
  if (options.method == Method::closed_form) {
    plan.status = Status::no_closed_form;
    return Step::done;
  }
  return blocks == ExactBlocks::some ? Step::one_factor : Step::factor;
}

// The exact blocks are integrated: their product, an absolute error of it and that of its
// logarithm. `rest` variables, of this mass and largest one, are sampled together, as a smaller
// row. Tolerances and what screening dropped stay those of the whole row.
MVNROB_HD_FN Step separated(RowPlan& plan, const RowOptions& options, double value,
                            double complement, double log_value, double error, double log_error,
                            int32_t rest, double mass, double largest) {
  ExactPart exact{value, complement, log_value, 0};
  // Multiples made one were among these too.
  const double effect = detail::effect_of(plan, plan.mass - mass, plan.kept - rest, plan.merged);
  exact.relative_error = exact.in_units(error + effect);
  if (value < complement)
    exact.relative_error = math::min(exact.relative_error, log_error + exact.in_units(effect));
  // p is at most E: nothing where that is an underflow, and not known as a logarithm.
  if (!(exact.in_units(1) < HUGE_VAL) && !(exact.relative_error < 1))
    return closed(plan, options, 0, 1, error, NAN, NAN, HUGE_VAL);
  plan.exact = exact;
  plan.rest = rest;
  plan.mass = mass;
  plan.largest = largest;
  // p is at most E (1 - largest), 1 - p at least (1 - E) + E largest.
  const double asked = math::max(exact.in_units(options.abs_tol),
                                 detail::relative_tolerance(options, math::max(1 - largest, 0.0),
                                                            exact.in_units(complement) + largest));
  return detail::begin_samples(plan, options, math::min(1.0, asked));
}

// Quadrature has failed: the row is sampled.
MVNROB_HD Step without_blocks(RowPlan& plan, const RowOptions& options) {
  if (options.method != Method::closed_form) return Step::factor;
  plan.status = Status::no_closed_form;
  return Step::done;
}

// The row has no answer: a negative variance or a NaN turned up in the matrix, for instance.
MVNROB_HD Step failed(RowPlan& plan, Status status) {
  plan.status = status;
  return Step::done;
}

// Most rows are told from exact blocks by a few entries. Where they are not, looking at all pairs
// costs a product of rows each if a factor of the covariance is given, of so many columns
// (otherwise -1).
MVNROB_HD bool is_worth_recognising(double variables, double columns) {
  return variables * variables * columns <= 1e9;
}

// Whether the backend, told to factor what is screened, first looks for exact blocks, and says
// recognised(): not where only samples have the digits.
MVNROB_HD bool looks_for_blocks(const RowPlan& plan, const RowOptions& options, double columns) {
  if (options.method == Method::sov || plan.only_samples) return false;
  return options.method == Method::closed_form || is_worth_recognising(plan.kept, columns);
}

// plan.dropped, mass, largest and kept are known.
MVNROB_HD_FN Step screened(RowPlan& plan, const RowOptions& options) {
  plan.points = 0;
  plan.order = PivotOrder::likely;
  plan.rest = plan.kept;
  plan.exact = ExactPart{};
  if (plan.kept == 0) {
    Estimate e;
    e.value = 1;
    e.error = 1e-15;
    detail::keep(plan, e, 0);
    plan.status = Status::exact;
    return Step::done;
  }
  if (options.method != Method::sov && plan.kept <= 3 && !plan.only_samples)
    return Step::closed_form;
  return detail::begin_samples(plan, options, detail::guess_of_tolerance(plan, options));
}

// Whether tilted samples want other pivots: more rows than these bound them (plan/tilt.h).
MVNROB_HD bool wants_nearest(const RowPlan& plan, const FactorFacts& facts) {
  return plan.tilted && plan.order == PivotOrder::likely && facts.exhausted &&
         facts.variables > facts.pivots;
}

// The rows that hold the nearest point are to be the pivots: the factor begins anew, or all is
// said.
MVNROB_HD_FN Step nearest_found(RowPlan& plan, const RowOptions& options,
                                const FoundNearest& found) {
  if (found.is_empty()) return closed(plan, options, 0, 1, 0, -HUGE_VAL, HUGE_VAL, 0);
  plan.order = PivotOrder::nearest;
  return Step::factor;
}

// Of those pivots rounding leaves no factor: it begins anew with the others.
MVNROB_HD Step nearest_failed(RowPlan& plan) {
  plan.order = PivotOrder::likely_again;
  return Step::factor;
}

MVNROB_HD_FN Step factored(RowPlan& plan, const RowOptions& options, const FactorFacts& facts) {
  plan.pivots = facts.pivots;
  plan.points = 0;
  if (facts.exhausted && facts.pivots == 1 && !plan.unites) return Step::rank_one;
  if (wants_nearest(plan, facts)) return Step::nearest;
  return detail::sample_to(plan, options, kPilot);
}

// The variables sampled are all multiples of one: they hold with the probability of an interval.
MVNROB_HD_FN Step ranked(RowPlan& plan, const RowOptions& options, const FactorFacts& facts,
                         const Bounds& y) {
  const IntervalProbability p = interval(y.lower, y.upper);
  double value = p.value, complement = p.complement, log_value = p.log_value;
  const double slope = math::relative_slope(y.lower, y.upper);
  const double size = math::largest_limit(y.lower, y.upper);
  double log_error = 4e-15 * (1 + ::fabs(log_value));
  if (slope > 0) log_error += 2 * math::kRoundingOfLimit * slope * size;
  const double moved = detail::neglected(plan, facts);
  const double by_slope =
      moved > 0 ? slope * detail::shift_of(plan, facts.variables, facts.neglected) : 0.0;
  log_error += math::min(detail::log_effect_of(moved, value), by_slope < 0.5 ? by_slope : HUGE_VAL);
  double error = (value < complement ? 1e-15 : 0.0) + 1e-12 * math::min(value, complement) + moved;
  const ExactPart exact = plan.exact;
  const int32_t beside = plan.kept - plan.rest;
  if (beside > 0) {  // the whole row has an exact answer then
    log_error += detail::log_effect_of(exact.relative_error, 1);
    error = exact.value * exact.whole_error(value, error);
    log_value += exact.log_value;
    complement = exact.whole_complement(complement);
    value = exact.whole(value);
    plan.exact = ExactPart{};
  }
  plan.merged = 0;  // it is among what is neglected
  const Step step = closed(plan, options, value, complement, error, log_value, log_error, slope);
  if (step == Step::done) plan.pivots = 1 + beside;
  return step;
}

// More pivots, or more points.
MVNROB_HD_FN Step go_on(RowPlan& plan, const RowOptions& options, const Quantiles& quantiles,
                        const FactorFacts& facts, const Estimate& e, double t, double allowed) {
  const double room_for_bias = 0.35 * allowed;
  if (!facts.exhausted && e.bias > room_for_bias) {
    // The bound falls at least like 1 / k. The samples so far are dropped: kept as coarse levels
    // (Giles 2008) they saved time, up to 1.8 times, but not at the same true error: at best
    // 1.3 times from n = 999 on, below 1 elsewhere.
    plan.target = (e.bias > 8 * room_for_bias ? 4 : 2) * plan.pivots;
    return Step::factor;
  }
  const double t_next = detail::t_of_next_look(quantiles, plan.later_looks);
  return detail::sample_to(plan, options,
                           detail::next_points(plan, options, e, t, t_next, allowed));
}

// The backend has looked for the tilt.
MVNROB_HD void tilt_found(RowPlan& plan, const FoundTilt& found) {
  plan.log_unit = found.log_unit;
  plan.has_saddle = found.tilts;
  plan.by_rounding = found.by_rounding;
  plan.by_groups = found.by_groups;
}

// The same for tilted samples: everything in units of exp(log_unit).
MVNROB_HD_FN Step looked_at_tilted(RowPlan& plan, const RowOptions& options,
                                   const Quantiles& quantiles, const FactorFacts& facts,
                                   const SampleSums* sums) {
  const double t = detail::t_of_look(plan, quantiles);
  Estimate e = estimate(sums, double(plan.points), t, false, true);
  const double unit = ::exp(plan.log_unit);  // may underflow
  const double allowed_of_value = options.relative_to_p() * e.value;
  const double whole_unit = plan.exact.whole(unit);
  plan.tolerance = allowed_of_value * whole_unit;
  // ln of the weight is a sum of that size. All variables are pivots: nothing is skipped.
  e.error += (1e-12 + 1e-15 * (::fabs(plan.log_unit) + plan.by_rounding)) * e.value;
  if (facts.neglected > 0) {
    // Limits move by `shift`. Absolutely that is never more than for plain samples; relative to p,
    // the slopes at the saddle point say it, to first order.
    const double shift = ::sqrt(2 * ::log(2.0 * facts.variables) * facts.neglected);
    const double absolute = detail::neglected(plan, facts) / unit;
    const double by_slopes = facts.entry_error > facts.double_error ? 0.0
                             : plan.has_saddle ? 2 * shift * plan.by_groups * e.value
                                               : HUGE_VAL;
    e.error += math::min(by_slopes, absolute == absolute ? absolute : 0.0);
  }
  e.error = math::max(e.error, detail::unseen_weight(plan, e, unit));
  // What plain samples said holds for tilted ones too.
  if (unit > 0) {
    e.error = math::max(e.error, plan.plain_low / unit - e.value);
    e.error = math::max(e.error, e.value - plan.plain_high / unit);
  }
  if (e.value > 0 && e.value < HUGE_VAL && e.error < HUGE_VAL) {
    detail::keep(plan, e, plan.log_unit);
  } else {  // nothing new is known
    const bool known = plan.plain_low > 0;
    e.value = known ? 0.5 * (plan.plain_low + plan.plain_high) : 0.0;
    e.error = plan.plain_high - e.value;
    detail::keep(plan, e, 0);
    e.value = 0;
  }
  if (plan.dropped > 0 && (whole_unit == 0 || detail::screens_too_much(plan)))
    return detail::screen_less(plan);
  if (detail::wants_whole(plan, options, e.value, e.value, allowed_of_value))
    return detail::sample_whole(plan);
  const double allowed = plan.exact.left_for(
      allowed_of_value - (plan.dropped > 0 ? 0.5 * plan.dropped / whole_unit : 0.0), e.value);
  if (e.value > 0 && e.error <= allowed) {
    plan.status = Status::converged;
    return Step::done;
  }
  return go_on(plan, options, quantiles, facts, e, t, allowed);
}

// `sums` of each shift over plan.next points.
MVNROB_HD_FN Step looked(RowPlan& plan, const RowOptions& options, const Quantiles& quantiles,
                         const FactorFacts& facts, const SampleSums* sums) {
  plan.points = plan.next;
  if (plan.tilted) return looked_at_tilted(plan, options, quantiles, facts, sums);
  const double t = detail::t_of_look(plan, quantiles);
  Estimate e = estimate(sums, double(plan.points), t, plan.unites, false);
  const double small = math::min(e.value, e.complement);
  const double whole = plan.exact.whole(e.value),
               whole_complement = plan.exact.whole_complement(e.complement);
  plan.tolerance = detail::tolerance(options, whole, whole_complement);
  e.error += detail::rounding(plan, options, small);
  e.error += facts.exhausted || plan.unites ? 0 : plan.skipped;
  e.error += detail::neglected(plan, facts);
  e.error = math::max(e.error, detail::unseen(plan, e));
  detail::keep(plan, e, 0);
  if (detail::screens_too_much(plan)) return detail::screen_less(plan);
  // In units of E, which may underflow: nothing is dropped then, or any v will do.
  const double complement_in_units = plan.exact.in_units(whole_complement);
  const double small_side = math::min(e.value, complement_in_units);
  const double asked = math::max(plan.exact.in_units(options.abs_tol),
                                 detail::relative_tolerance(options, e.value, complement_in_units));
  if (detail::wants_whole(plan, options, e.value, small_side, asked))
    return detail::sample_whole(plan);
  const double allowed = plan.exact.left_for(
      plan.dropped > 0 ? plan.exact.in_units(plan.tolerance - 0.5 * plan.dropped) : asked, e.value);
  if (e.error <= allowed) {
    plan.status = Status::converged;
    return Step::done;
  }
  const double t_next = detail::t_of_next_look(quantiles, plan.later_looks);
  if (detail::union_is_cheaper(plan, options, e, t, t_next, allowed)) {
    plan.unites = true;
    plan.target = plan.rest;
    return Step::factor;
  }
  if (detail::wants_tilt(plan, options, e)) {
    // With all pivots: rows that complete would be as improbable as the pivots, and are not tilted.
    plan.tilted = true;
    plan.target = plan.rest;
    plan.plain_low = math::max(e.value - e.error, 0.0);
    plan.plain_high = e.value + e.error;
    return Step::factor;
  }
  return go_on(plan, options, quantiles, facts, e, t, allowed);
}

// The truth is between value - dropped and value: report the middle.
MVNROB_HD_FN RowResult result(const RowPlan& plan) {
  const Estimate& e = plan.best;
  const double unit = ::exp(plan.best_log_unit);
  const double half = 0.5 * math::min(plan.best_dropped, e.value * unit);
  const bool small_complement = !plan.best_tilted && e.complement < 0.5;
  RowResult r;
  r.prob = (small_complement ? 1 - e.complement : e.value * unit) - half;
  r.complement = (small_complement ? e.complement : 1 - e.value * unit) + half;
  r.prob = math::min(1.0, math::max(0.0, r.prob));
  r.complement = math::min(1.0, math::max(0.0, r.complement));
  r.error = e.error * unit + half;
  // Where unit underflows the logarithm does not know what was screened.
  const double moved = half > 0 ? half / unit : plan.best_dropped > 0 ? 0.5 * e.value : 0.0;
  r.log_prob = small_complement ? ::log1p(-r.complement)
                                : ::log(e.value) + plan.best_log_unit +
                                      (moved > 0 ? ::log1p(-moved / e.value) : 0.0);
  const double relative =
      small_complement ? r.error / r.prob : (e.error + moved) / (e.value - moved);
  const bool is_whole = plan.best_dropped <= kUnderflown;
  r.log_error = e.error == 0 && is_whole ? 0.0 : relative < 1 ? -::log1p(-relative) : HUGE_VAL;
  if (plan.best_log_value == plan.best_log_value && !small_complement && is_whole) {
    r.log_prob = plan.best_log_value;
    r.log_error = plan.best_log_error;
  }
  r.status = plan.status;
  if (plan.status == Status::indefinite || plan.status == Status::nan ||
      plan.status == Status::no_closed_form)
    r.prob = r.complement = r.error = r.log_prob = r.log_error = NAN;
  r.n_points = plan.n_points;
  r.n_active = plan.kept;
  r.n_pivots = plan.pivots + (plan.kept - plan.rest);
  return r;
}

}  // namespace mvnrob::plan
