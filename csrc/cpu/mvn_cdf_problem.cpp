#include "cpu/mvn_cdf_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

double entry_error(bool is_double) {
  return is_double ? 4 * std::numeric_limits<double>::epsilon()
                   : double(std::numeric_limits<float>::epsilon());
}

Prepared Problem::read(const RowInput& input) {
  variable.clear();
  upper.clear();
  lower.clear();
  inverse_sd.clear();
  rectangular = false;
  entry_error = mvnrob::entry_error(input.cov.is_double);
  bool zero = false, negative = false;
  double largest = 0;
  for (int64_t i = 0; i < input.n; ++i) largest = std::max(largest, input.cov.at(i, i));
  for (int64_t i = 0; i < input.n; ++i) {
    auto limit = [&](const void* p) {
      return input.is_double ? static_cast<const double*>(p)[i]
                             : double(static_cast<const float*>(p)[i]);
    };
    const double u = limit(input.upper), l = input.lower ? limit(input.lower) : -kInfinity;
    const double variance = input.cov.at(i, i);
    if (std::isnan(u) || std::isnan(l) || !std::isfinite(variance)) return Prepared::nan;
    if (variance < -10 * entry_error * largest) negative = true;
    if (l > u || u == -kInfinity || l == kInfinity) zero = true;
    if (u == kInfinity && l == -kInfinity) continue;
    if (variance <= 0) {  // a constant zero; the limits include their ends
      if (u < 0 || l > 0) zero = true;
      continue;
    }
    if (l == u) zero = true;
    const double scale = 1 / std::sqrt(variance);
    variable.push_back(i);
    inverse_sd.push_back(scale);
    upper.push_back(u * scale);
    lower.push_back(l * scale);
    rectangular |= l != -kInfinity;
  }
  if (negative) return Prepared::indefinite;
  if (zero) return Prepared::zero;
  const int64_t m = int64_t(variable.size());
  mass.resize(m);
  std::vector<double> negated(m);
  for (int64_t i = 0; i < m; ++i) negated[i] = -upper[i];
  simd_table().ndtr(negated.data(), mass.data(), m);
  if (rectangular) {
    std::vector<double> below(m);
    simd_table().ndtr(lower.data(), below.data(), m);
    for (int64_t i = 0; i < m; ++i) mass[i] += below[i];
  }
  return m == 0 ? Prepared::one : Prepared::integrate;
}

double screen(const Problem& all, double tau, Problem& kept) {
  const int64_t m = int64_t(all.variable.size());
  // Masses far below tau go without being sorted.
  std::vector<int64_t> small;
  double dropped = 0;
  std::vector<char> drop(m, 0);
  for (int64_t i = 0; i < m; ++i) {
    if (all.mass[i] <= tau / double(2 * m)) {
      drop[i] = 1;
      dropped += all.mass[i];
    } else if (all.mass[i] <= tau) {
      small.push_back(i);
    }
  }
  std::sort(small.begin(), small.end(), [&](int64_t a, int64_t b) {
    return all.mass[a] != all.mass[b] ? all.mass[a] < all.mass[b] : a < b;
  });
  for (int64_t i : small) {
    if (dropped + all.mass[i] > tau) break;
    dropped += all.mass[i];
    drop[i] = 1;
  }
  kept.variable.clear();
  kept.upper.clear();
  kept.lower.clear();
  kept.inverse_sd.clear();
  kept.mass.clear();
  kept.rectangular = false;
  kept.entry_error = all.entry_error;
  for (int64_t i = 0; i < m; ++i) {
    if (drop[i]) continue;
    kept.variable.push_back(all.variable[i]);
    kept.upper.push_back(all.upper[i]);
    kept.lower.push_back(all.lower[i]);
    kept.inverse_sd.push_back(all.inverse_sd[i]);
    kept.mass.push_back(all.mass[i]);
    kept.rectangular |= all.lower[i] != -kInfinity;
  }
  return dropped;
}

}  // namespace mvnrob
