#include "cpu/closed_form.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "math/bivariate.h"
#include "math/normal.h"
#include "math/trivariate.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Interval {
  double lower, upper;
};

double interval(Interval a) {
  if (a.lower + a.upper > 0) a = {-a.upper, -a.lower};  // the difference in the lower tail
  return math::ndtr<double>(a.upper) - math::ndtr<double>(a.lower);
}

// P(X1 in a, X2 in b), inclusion-exclusion over the corners.
double box2(Interval a, Interval b, double rho) {
  if (a.lower + a.upper > 0) a = {-a.upper, -a.lower}, rho = -rho;
  if (b.lower + b.upper > 0) b = {-b.upper, -b.lower}, rho = -rho;
  double p = math::bvn_cdf(a.upper, b.upper, rho);
  if (a.lower > -kInfinity) p -= math::bvn_cdf(a.lower, b.upper, rho);
  if (b.lower > -kInfinity) p -= math::bvn_cdf(a.upper, b.lower, rho);
  if (a.lower > -kInfinity && b.lower > -kInfinity) p += math::bvn_cdf(a.lower, b.lower, rho);
  return std::max(p, 0.0);
}

double box3(Interval (&&x)[3], double r12, double r13, double r23) {
  double* touched[3][2] = {{&r12, &r13}, {&r12, &r23}, {&r13, &r23}};
  for (int i = 0; i < 3; ++i) {
    if (!(x[i].lower + x[i].upper > 0)) continue;
    x[i] = {-x[i].upper, -x[i].lower};
    for (double* r : touched[i]) *r = -*r;
  }
  double p = 0;
  for (int corner = 0; corner < 8; ++corner) {
    double limit[3], sign = 1;
    bool empty = false;
    for (int i = 0; i < 3; ++i) {
      const bool low = corner >> i & 1;
      limit[i] = low ? x[i].lower : x[i].upper;
      empty |= low && x[i].lower == -kInfinity;
      if (low) sign = -sign;
    }
    if (!empty) p += sign * math::tvn_cdf(limit[0], limit[1], limit[2], r12, r13, r23);
  }
  return std::max(p, 0.0);
}

// The correlation, and how far its rounding moves a probability: dP / drho <= 1 / (2 pi
// sqrt(1 - rho^2)) (Plackett 1954). Near +-1 that is far more than an ulp, so v1 v2 - c^2 is formed
// with the products' rounding errors, and variables that are multiples of each other are found as
// such.
double pair_correlation(const Problem& problem, const CovarianceView& cov, int64_t i, int64_t j,
                        double& rho) {
  const double v = cov.at(problem.variable[i], problem.variable[i]);
  const double w = cov.at(problem.variable[j], problem.variable[j]);
  const double c = cov.at(problem.variable[i], problem.variable[j]);
  rho = problem.correlation(cov, i, j);
  const double p = v * w, q = c * c;
  const double gap = (p - q) + (std::fma(v, w, -p) - std::fma(c, c, -q));
  if (gap == 0) {
    rho = c > 0 ? 1 : -1;
    return 0;
  }
  constexpr double kUlps = 4 * std::numeric_limits<double>::epsilon();
  const double rest = std::isfinite(gap / p) ? std::abs(gap / p) : std::abs(1 - rho * rho);
  return kUlps / (2 * 3.141592653589793 * std::sqrt(std::max(rest, kUlps)));
}

// The half-lines outside an interval.
struct Outside {
  Interval part[2];
  int count;
};

Outside outside(const Interval& a) {
  Outside o{{{a.upper, kInfinity}, {-kInfinity, a.lower}}, 1};
  if (a.lower > -kInfinity) o.count = 2;
  if (a.upper == kInfinity) o = {{{-kInfinity, a.lower}, {}}, 1};
  return o;
}

}  // namespace

bool closed_form(const Problem& problem, const CovarianceView& cov, RowResult& result) {
  const int64_t m = int64_t(problem.variable.size());
  result.status = Status::exact;
  result.n_points = 0;
  result.n_active = m;
  result.n_pivots = m;
  auto at = [&](int64_t i) { return Interval{problem.lower[i], problem.upper[i]}; };
  bool independent = true;
  for (int64_t i = 0; i < m && independent; ++i)
    for (int64_t j = 0; j < i && independent; ++j)
      independent = problem.correlation(cov, i, j) == 0;
  if (independent) {
    double p = 1, missing = 0;
    for (int64_t i = 0; i < m; ++i) {
      missing += p * problem.mass[i];
      p *= interval(at(i));
    }
    result.prob = p;
    result.complement = missing;
    result.error = 4e-15 * double(m);
    return true;
  }
  if (m > 3) return false;
  double r[3] = {0, 0, 0};  // 12, 13, 23
  double rounding = pair_correlation(problem, cov, 1, 0, r[0]);
  if (m == 3) {
    rounding += pair_correlation(problem, cov, 2, 0, r[1]);
    rounding += pair_correlation(problem, cov, 2, 1, r[2]);
  }
  const double determinant = 1 - r[0] * r[0] - r[1] * r[1] - r[2] * r[2] + 2 * r[0] * r[1] * r[2];
  double largest = 0;
  bool nan = false;
  for (double& rho : r) {
    largest = std::max(largest, std::abs(rho));
    nan |= std::isnan(rho);
    rho = std::min(1.0, std::max(-1.0, rho));
  }
  if (nan) {
    result.status = Status::nan;
    return true;
  }
  const double tolerance = 80 * problem.entry_error;
  if (!(largest <= 1 + tolerance) || !(determinant >= -tolerance)) {
    result.status = Status::indefinite;
    return true;
  }
  // 1 - P = P(1 out) + P(1 in, 2 out) + P(1 in, 2 in, 3 out): sums of positive terms.
  const Interval a = at(0), b = at(1);
  result.complement = problem.mass[0];
  const Outside out_b = outside(b);
  for (int i = 0; i < out_b.count; ++i) result.complement += box2(a, out_b.part[i], r[0]);
  if (m == 2) {
    result.prob = box2(a, b, r[0]);
    result.error = 4e-15 + rounding;
    return true;
  }
  const Interval c = at(2);
  const Outside out_c = outside(c);
  for (int i = 0; i < out_c.count; ++i)
    result.complement += box3({a, b, out_c.part[i]}, r[0], r[1], r[2]);
  result.prob = box3({a, b, c}, r[0], r[1], r[2]);
  result.error = 1e-12 + rounding;
  return true;
}

}  // namespace mvnrob
