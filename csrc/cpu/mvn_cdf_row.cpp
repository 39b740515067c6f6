#include "cpu/mvn_cdf_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cpu/closed_form.h"
#include "cpu/generators.h"
#include "cpu/student_t.h"
#include "math/lattice.h"
#include "math/normal.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMissProbability = 0.01;  // of the reported error
constexpr int64_t kPilot = kTileSamples;   // points per shift before the first look
constexpr int64_t kChunkTiles = 64;        // tiles of one task: fixed, so that sums are too
constexpr int64_t kFullBelow = 48;         // variables up to which all are sampled at once

// The miss probability is spent over the looks at the interval: looks at the pilot are cheap and
// seldom decide, so they get 3 % each; those after it get 40 %, 20 %, 10 % and so on.
class Confidence {
 public:
  // t-quantile of the next look.
  double next(bool pilot) {
    if (pilot && pilots_ < 6) {
      ++pilots_;
      return quantile(0.03);
    }
    weight_ *= 0.5;
    return quantile(std::max(weight_, 1e-5));
  }
  double upcoming() const { return quantile(std::max(0.5 * weight_, 1e-5)); }

 private:
  static double quantile(double weight) { return student_t7_quantile(kMissProbability * weight); }
  int pilots_ = 0;
  double weight_ = 0.8;
};

// Mean over the shifts and its standard error.
struct Spread {
  double mean, error;
};

template <class Get>
Spread spread(const Get& get) {
  double mean = 0, square = 0;
  for (int s = 0; s < kShifts; ++s) mean += get(s);
  mean /= kShifts;
  for (int s = 0; s < kShifts; ++s) square += (get(s) - mean) * (get(s) - mean);
  return {mean, std::sqrt(square / (kShifts * (kShifts - 1)))};
}

// What is known after a look: the estimates, and how far the truth may be above and below.
struct Estimate {
  double value = 0, complement = 0;
  double error = kInfinity;  // sampling and completion together
  double sampling = 0;       // the part that more points make smaller
  double bias = 0;           // the part that more pivots make smaller
  double effective = 0;      // effective number of samples
};

}  // namespace

struct RowWorkspace {
  Problem all, kept;
  Factor factor;
  PackedProgram<float> program_float;
  PackedProgram<double> program_double;
  std::vector<uint32_t> shifts;
  std::vector<SampleSums> task_sums;

  PackedProgram<float>& program(float) { return program_float; }
  PackedProgram<double>& program(double) { return program_double; }
};

RowWorkspace* new_row_workspace() { return new RowWorkspace; }
void delete_row_workspace(RowWorkspace* workspace) { delete workspace; }

namespace {

// The points of one program and what they summed to.
template <class scalar_t>
class Series {
  static constexpr double kWorthThreads = 5e6;  // multiply-adds

 public:
  Series(RowWorkspace& workspace, const Runner& run, uint64_t seed, const uint32_t* generators)
      : w_(workspace), run_(run), seed_(seed), generators_(generators) {}

  void restart(double skip_limit) {
    const int64_t pivots = w_.factor.pivots();
    PackedProgram<scalar_t>& packed = w_.program(scalar_t(0));
    packed.pack(w_.factor, skip_limit);
    w_.shifts.resize(kShifts * pivots);
    for (int s = 0; s < kShifts; ++s)
      for (int64_t j = 0; j < pivots; ++j)
        w_.shifts[s * pivots + j] = math::hash_shift(seed_, uint32_t(s), uint32_t(j));
    for (SampleSums& sums : sums_) sums = {};
    points_ = 0;
  }

  int64_t points() const { return points_; }  // of each shift

  void extend(int64_t points) {
    const Program<scalar_t>& program = w_.program(scalar_t(0)).program();
    const int64_t tiles = (points - points_) / kTileSamples;
    const int64_t chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
    w_.task_sums.assign(kShifts * chunks, {});
    const SampleFn<scalar_t> sample = pick(simd_table());
    // Waking threads costs more than a few hundred microseconds of samples.
    const double work = double(kShifts * (points - points_)) * w_.program(scalar_t(0)).cost();
    const Runner& run = work < kWorthThreads ? run_here : run_;
    run(kShifts * chunks, [&](int64_t task) {
      thread_local std::vector<scalar_t> scratch;
      const size_t size = size_t(workspace_size(program.n_pivots)) + 64;
      if (scratch.size() < size) scratch.resize(size);
      const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
      scalar_t* aligned = scratch.data() + (64 - address % 64) % 64 / sizeof(scalar_t);
      const int64_t shift = task / chunks, chunk = task % chunks;
      const int64_t first = points_ + chunk * kChunkTiles * kTileSamples;
      sample(program, generators_, w_.shifts.data() + shift * program.n_pivots, uint32_t(first),
             std::min(kChunkTiles, tiles - chunk * kChunkTiles), aligned, &w_.task_sums[task]);
    });
    for (int s = 0; s < kShifts; ++s)
      for (int64_t c = 0; c < chunks; ++c) sums_[s].add(w_.task_sums[s * chunks + c]);
    points_ = points;
  }

  // The interval at t standard errors. The truth lies between value - below and value + above in
  // expectation, so the ends' own spreads count.
  Estimate look(double t) const {
    const double n = double(points_);
    const Spread value = spread([&](int s) { return sums_[s].value / n; });
    const Spread low = spread([&](int s) { return (sums_[s].value - sums_[s].below) / n; });
    const Spread high = spread([&](int s) { return (sums_[s].value + sums_[s].above) / n; });
    Estimate e;
    e.value = value.mean;
    double sum = 0, square = 0;
    for (const SampleSums& s : sums_) {
      e.complement += s.complement / (n * kShifts);
      sum += s.value;
      square += s.square;
    }
    e.error =
        std::max(value.mean - low.mean + t * low.error, high.mean + t * high.error - value.mean);
    e.sampling = t * value.error;
    e.bias = std::max(e.error - e.sampling, 0.0);
    e.effective = square > 0 ? sum * sum / square : 0;
    return e;
  }

 private:
  static SampleFn<float> pick_as(const SimdTable& t, float) { return t.sample_float; }
  static SampleFn<double> pick_as(const SimdTable& t, double) { return t.sample_double; }
  static SampleFn<scalar_t> pick(const SimdTable& t) { return pick_as(t, scalar_t(0)); }

  RowWorkspace& w_;
  const Runner& run_;
  const uint64_t seed_;
  const uint32_t* generators_;
  SampleSums sums_[kShifts];
  int64_t points_ = 0;
};

// Limit beyond which a whole tile's row is left out: m such rows, of two tails each, together stay
// below 1 % of tol.
double skip_limit(double tolerance, int64_t m) {
  const double each = 0.005 * tolerance / double(m);
  return each > 0 ? -math::ndtri<double>(std::max(each, 1e-300)) : 40.0;
}

template <class scalar_t>
class Integrator {
 public:
  Integrator(const RowInput& input, uint64_t seed, const RowOptions& options, RowWorkspace& w,
             const Runner& run)
      : input_(input),
        options_(options),
        w_(w),
        generators_(richtmyer_generators(input.n)),
        series_(w, run, seed, generators_->data()) {}

  // False when float32 will not do.
  bool solve(RowResult& result) {
    double tau = 0.1 * tolerance(guess_of_min());
    if (w_.all.variable.size() <= 3) tau = 0;  // a closed form takes them all
    for (;;) {
      const double dropped = screen(w_.all, tau, w_.kept);
      const Outcome outcome = solve_kept(dropped, result);
      if (outcome == Outcome::needs_double) return false;
      if (outcome == Outcome::done) return true;
      tau = 0.1 * tolerance_;  // screened too much for a relative tolerance
    }
  }

 private:
  enum class Outcome { done, needs_double, screen_less };

  double tolerance(double min_p) const {
    return std::max(options_.abs_tol, options_.rel_tol * min_p);
  }

  // 1 - p is at least the largest single mass, and p at most one minus it.
  double guess_of_min() const {
    double largest = 0;
    for (double mass : w_.all.mass) largest = std::max(largest, mass);
    return std::min(largest, std::max(1 - largest, 0.0));
  }

  Outcome solve_kept(double dropped, RowResult& result) {
    const int64_t m = int64_t(w_.kept.variable.size());
    result.n_active = m;
    if (m == 0) {
      Estimate nothing;
      nothing.value = 1;
      nothing.error = 1e-15;
      finish(nothing, dropped, result);
      result.status = Status::exact;
      return Outcome::done;
    }
    if (options_.method != Method::sov && closed_form(w_.kept, input_.cov, result)) {
      if (result.status != Status::exact) return Outcome::done;
      Estimate e;
      e.value = result.prob;
      e.complement = result.complement;
      e.error = result.error;
      tolerance_ = tolerance(std::min(e.value, e.complement));
      if (0.5 * dropped > 0.25 * tolerance_ && dropped > 0) return Outcome::screen_less;
      finish(e, dropped, result);
      return Outcome::done;
    }
    w_.factor.start(w_.kept, input_.cov);
    double mass = 0, largest = 0;
    for (double x : w_.kept.mass) mass += x, largest = std::max(largest, x);
    const double first_tolerance = tolerance(guess_of_min());
    const double limit = skip_limit(first_tolerance, m);
    const double skipped = double(m) * (limit < 40 ? 0.01 * first_tolerance / double(m) : 0);
    int64_t pivots = options_.method == Method::sov || m <= kFullBelow ? m : 16;
    result.status = Status::max_points;
    for (;;) {
      const Advanced advanced = w_.factor.advance(pivots);
      if (advanced != Advanced::yes) {
        result.status = advanced == Advanced::nan ? Status::nan : Status::indefinite;
        return Outcome::done;
      }
      pivots = std::min(pivots, w_.factor.pivots());
      const bool complete = w_.factor.exhausted() && pivots == w_.factor.pivots();
      result.n_pivots = pivots;
      series_.restart(limit);
      int64_t next = kPilot;
      bool deepen = false;
      while (!deepen) {
        next = std::min(next, points_left(result));
        if (next <= series_.points()) return stop(result);
        result.n_points += kShifts * (next - series_.points());
        series_.extend(next);
        const double t = confidence_.next(series_.points() == kPilot);
        Estimate e = series_.look(t);
        tolerance_ = tolerance(std::min(e.value, e.complement));
        e.error += rounding(std::min(e.value, e.complement));
        e.error += complete ? 0 : skipped;
        e.error += neglected();
        if (complete && pivots == 1) {  // the integrand is constant: only rounding is left
          if (std::is_same<scalar_t, float>::value) return Outcome::needs_double;
          result.status = w_.factor.neglected() > 1e-12 ? Status::converged : Status::exact;
          keep(e, dropped);
          return stop(result);
        }
        e.error = std::max(e.error, unseen(e, mass, largest));
        keep(e, dropped);
        if (dropped > 0 && 0.5 * dropped > 0.25 * tolerance_) return Outcome::screen_less;
        const double allowed = tolerance_ - 0.5 * dropped;
        if (e.error <= allowed) {
          result.status = Status::converged;
          return stop(result);
        }
        if (!complete && e.bias > 0.35 * allowed) {
          deepen = true;
          pivots = next_pivots(pivots, e.bias / (0.35 * allowed));
        } else {
          next = next_points(e, t, confidence_.upcoming(), allowed);
          const double range = unseen_points(e) * (1 - largest) / kShifts;
          if (allowed < mass - largest)
            next = std::max(next, round_up(std::min(range / allowed, 16.0 * double(next))));
        }
      }
    }
  }

  // The spread over the shifts knows nothing of a corner that no point has met, and where p is near
  // 1 the integrand is flat but for such corners. N points leave a set of probability 4 / N unseen
  // at odds of e^-4, and the integrand is at most 1 - largest there. When few samples carry the
  // sum, the range term of the empirical Bernstein bound (Maurer and Pontil 2009) at 99 %, 7/3
  // ln(200) / N, is wanted. Neither is more than what is certain: largest <= 1 - P <= mass.
  double unseen(const Estimate& e, double mass, double largest) const {
    const double range = unseen_points(e) * (1 - largest) / double(kShifts * series_.points());
    return std::min(range, mass - largest);
  }

  static double unseen_points(const Estimate& e) { return e.effective < 50 ? 12.4 : 4.0; }

  // float32 limits near a narrow interval are wrong by an ulp of the limits, so its error is
  // absolute; float64 keeps the digits of p and of 1 - p, neither of which is a difference.
  static double rounding(double small) {
    return std::is_same<scalar_t, float>::value ? 3e-7 : 1e-15 + 1e-12 * small;
  }

  // Effect of taking a variance s^2 as zero in some of m rows: the limits move by at most about
  // s sqrt(2 ln 2m), where P has slope 1 / sqrt(2 pi). For float64 only: the rounding of a float32
  // matrix, far larger, is the input's and not the integral's.
  double neglected() const {
    if (w_.kept.entry_error >= entry_error(false)) return 0;
    const double m = double(w_.factor.size());
    return 0.4 * std::sqrt(2 * std::log(2 * m) * w_.factor.neglected());
  }

  // The bound falls at least like 1/k.
  static int64_t next_pivots(int64_t pivots, double excess) {
    return excess > 8 ? 4 * pivots : 2 * pivots;
  }

  int64_t points_left(const RowResult& result) const {
    const int64_t left = (options_.max_points - result.n_points) / kShifts + series_.points();
    return left / kTileSamples * kTileSamples;
  }

  static int64_t round_up(double points) {
    return (int64_t(points) + kTileSamples - 1) / kTileSamples * kTileSamples;
  }

  // At least double; further when the error, falling like N^-0.7, asks for it.
  int64_t next_points(const Estimate& e, double t, double t_next, double allowed) const {
    const double wanted = std::max(allowed - e.bias, 0.3 * allowed);
    const double ratio = 1.1 * e.sampling * (t_next / t) / wanted;
    const double factor = std::min(16.0, std::max(2.0, std::pow(std::max(ratio, 0.0), 1 / 0.7)));
    return round_up(double(series_.points()) * factor);
  }

  // The latest estimate, with the screened mass of its own plan.
  void keep(const Estimate& e, double dropped) {
    estimate_ = e;
    dropped_ = dropped;
  }

  Outcome stop(RowResult& result) {
    finish(estimate_, dropped_, result);
    return Outcome::done;
  }

  // The truth is between value - dropped and value: report the middle.
  static void finish(const Estimate& e, double dropped, RowResult& result) {
    const double half = 0.5 * std::min(dropped, e.value);
    result.prob = (e.complement < 0.5 ? 1 - e.complement : e.value) - half;
    result.complement = (e.complement < 0.5 ? e.complement : 1 - e.value) + half;
    result.prob = std::min(1.0, std::max(0.0, result.prob));
    result.complement = std::min(1.0, std::max(0.0, result.complement));
    result.error = e.error + half;
  }

  const RowInput& input_;
  const RowOptions& options_;
  RowWorkspace& w_;
  const Generators generators_;
  Series<scalar_t> series_;
  Estimate estimate_;
  double dropped_ = 0;
  Confidence confidence_;  // one budget for all plans of the row
  double tolerance_ = 0;
};

RowResult integrate_prepared(const RowInput& input, uint64_t seed, const RowOptions& options,
                             RowWorkspace& w, const Runner& run) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  RowResult result{nan, nan, nan, Status::nan, 0, 0, 0};
  if (options.method == Method::closed_form) {
    if (!closed_form(w.all, input.cov, result))
      throw std::invalid_argument(
          "mvn_cdf: method must be auto or sov for a row of more than 3 dependent variables, got "
          "closed_form");
    return result;
  }
  const bool coarse = options.abs_tol >= 1e-5;
  const bool narrow = options.compute_type == ComputeType::float32 ||
                      (options.compute_type == ComputeType::automatic && coarse);
  if (!narrow || !Integrator<float>(input, seed, options, w, run).solve(result))
    Integrator<double>(input, seed, options, w, run).solve(result);
  return result;
}

}  // namespace

RowResult integrate_row(const RowInput& input, uint64_t seed, const RowOptions& options,
                        RowWorkspace& w, const Runner& run) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  RowResult result{nan, nan, nan, Status::nan, 0, 0, 0};
  switch (w.all.read(input)) {
    case Prepared::nan:
      return result;
    case Prepared::indefinite:
      result.status = Status::indefinite;
      return result;
    case Prepared::zero:
      return {0, 1, 0, Status::exact, 0, 0, 0};
    case Prepared::one:
      return {1, 0, 0, Status::exact, 0, 0, 0};
    case Prepared::integrate:
      break;
  }
  result = integrate_prepared(input, seed, options, w, run);
  // A float64 matrix that was computed in float32 is indefinite by float32 rounding: judge it as
  // one.
  const double single = entry_error(false);
  if (result.status == Status::indefinite && w.all.entry_error < single) {
    w.all.entry_error = single;
    result = integrate_prepared(input, seed, options, w, run);
  }
  if (result.status == Status::indefinite || result.status == Status::nan)
    result.prob = result.complement = result.error = nan;
  return result;
}

}  // namespace mvnrob
