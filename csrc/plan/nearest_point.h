// The point of least norm within the limits of a factor's rows, and which rows hold it there.
//
// Far out the mass of a box lies at that point, and the rows with a multiplier are those that
// matter: where more rows than pivots bound the pivots (a singular covariance) they make the pivots
// from which a tilt is found (plan/tilt.h).
//
// min |x|^2, lower <= L x <= upper, by its dual: the multipliers w, of the sign of the limit that
// a row is held by, have x = -L^T w and minimise |x|^2 / 2 + sum (upper w, or lower w where w < 0).
// As Lawson and Hanson's NNLS (1974, Solving Least Squares Problems, 23) the row that breaks its
// limit most is held too, until none does; the multipliers of the rows held come from conjugate
// gradients, and a row whose multiplier turns is let go.
//
// `Rows` are a backend's: rows(), columns(), upper(i), lower(i), entry(i, l) of L, array(Array);
// each_row(f) does f(i) for every row and each_column(f) for every column, which everyone sees
// then; sum_rows(f) and sum_columns(f) add f up, max_rows(f) finds the largest.
#pragma once
#include <cmath>

#include "math/normal.h"

namespace mvnrob::plan {

// Of a number for each row, kAlong for each column.
enum NearestArray {
  kMultiplier,
  kAt,   // L x
  kGap,  // by how much L x is beyond the limit that holds the row, or that it breaks
  kStep,
  kTrial,
  kLeft,
  kConjugate,
  kProduct,
  kAlong,
  kNearestArrays,
};

constexpr int kNearestWork = 20000;         // products of the factor and a vector that it may take
constexpr double kNearestGap = 1e-16;       // of the gaps at zero, squared
constexpr double kNearestResidual = 1e-20;  // of the linear equations, squared
constexpr double kCostRounding = 1e-13;
// Curvature below which the cost is taken to fall until a row lets go; where none does it falls all
// but without end, as far as rounding of this curvature lets it.
constexpr double kFlat = 1e-14, kLeastBend = 1e-20;
// Part of the largest multiplier below which another one is none.
constexpr double kLeastMultiplier = 1e-9;

// What is known of the nearest point. All points within the limits are at least as far as
// multipliers of this cost say, even if these are not the best ones: |x|^2 / 2 >= -cost.
struct FoundNearest {
  double gaps;  // at zero, squared and added up
  double cost;
  double largest;  // multiplier

  // Whether the limits contradict each other, or leave a sliver whose rows are multiples but for
  // rounding: further than a million times the gaps. Its p is zero beside all numbers.
  MVNROB_HD bool is_empty() const { return -cost > 1e12 * math::max(gaps, 1.0); }
};

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 20011, 20014  // rows are of the device or of the host
#endif

template <class Rows>
class NearestPoint {
 public:
  MVNROB_HD explicit NearestPoint(Rows& rows) : r_(rows) {}

  // Leaves the multipliers; where no point is within the limits, some that show it.
  MVNROB_HD_FN FoundNearest find() const {
    r_.each_row([&](int i) { row(kMultiplier)[i] = row(kAt)[i] = 0; });
    FoundNearest found{0, 0, 0};
    double& cost = found.cost;
    for (int work = 0; work < kNearestWork && !found.is_empty();) {
      const double size = look();
      if (work == 0) found.gaps = size;
      if (!(size > kNearestGap * found.gaps)) break;
      set_worst();
      const bool moved = move(cost);
      look();
      work += 6 + solve_face();
      if (!move(cost) && !moved) break;
    }
    found.largest = r_.max_rows([&](int i) { return ::fabs(row(kMultiplier)[i]); });
    return found;
  }

 private:
  MVNROB_HD double* row(NearestArray which) const { return r_.array(which); }

  // The gaps, and the sum of their squares.
  MVNROB_HD double look() const {
    r_.each_row([&](int i) {
      const double w = row(kMultiplier)[i], at = row(kAt)[i];
      const double above = at - r_.upper(i), below = at - r_.lower(i);
      row(kGap)[i] = w > 0 ? above : w < 0 ? below : above > 0 ? above : below < 0 ? below : 0.0;
    });
    return r_.sum_rows([&](int i) { return row(kGap)[i] * row(kGap)[i]; });
  }

  // kAlong = L^T of what rows hold, and its squared length.
  MVNROB_HD double combine(NearestArray which) const {
    r_.each_column([&](int k) {
      double sum = 0;
      MVNROB_ROLLED
      for (int i = 0; i < r_.rows(); ++i) {
        const double w = row(which)[i];
        if (w != 0) sum = ::fma(w, r_.entry(i, k), sum);
      }
      row(kAlong)[k] = sum;
    });
    return r_.sum_columns([&](int k) { return row(kAlong)[k] * row(kAlong)[k]; });
  }
  MVNROB_HD double along(int i) const {
    double sum = 0;
    MVNROB_ROLLED
    for (int k = 0; k < r_.columns(); ++k) sum = ::fma(r_.entry(i, k), row(kAlong)[k], sum);
    return sum;
  }

  // A step to the limit of the row that breaks its own most, of those that are not held yet: rows
  // are of length one.
  MVNROB_HD void set_worst() const {
    const double most =
        r_.max_rows([&](int i) { return row(kMultiplier)[i] == 0 ? ::fabs(row(kGap)[i]) : 0.0; });
    r_.each_row([&](int i) {
      const double gap = row(kGap)[i];
      row(kStep)[i] = row(kMultiplier)[i] == 0 && ::fabs(gap) == most ? gap : 0.0;
    });
  }

  // The step to where all rows that are held have no gap; how many products it took.
  MVNROB_HD int solve_face() const {
    r_.each_row([&](int i) {
      const double left = row(kMultiplier)[i] != 0 ? row(kGap)[i] : 0.0;
      row(kStep)[i] = 0;
      row(kLeft)[i] = row(kConjugate)[i] = left;
    });
    const auto square = [&](NearestArray which) {
      return r_.sum_rows([&](int i) { return row(which)[i] * row(which)[i]; });
    };
    double size = square(kLeft);
    const double enough = kNearestResidual * size;
    int products = 0;
    for (; size > enough && products < 2 * r_.columns() + 8; ++products) {
      const double bend = combine(kConjugate), length = square(kConjugate);
      if (!(bend > kFlat * length)) {
        const double turns = r_.max_rows([&](int i) {
          const double w = row(kMultiplier)[i], there = w + row(kStep)[i];
          return w == 0 ? 0.0 : there * w > 0 ? -row(kConjugate)[i] / there : HUGE_VAL;
        });
        const double far = turns > 0 ? 1 / turns : size / math::max(bend, kLeastBend * length);
        r_.each_row([&](int i) { row(kStep)[i] = ::fma(far, row(kConjugate)[i], row(kStep)[i]); });
        break;
      }
      r_.each_row([&](int i) { row(kProduct)[i] = row(kMultiplier)[i] != 0 ? along(i) : 0.0; });
      const double far = size / bend, before = size;
      r_.each_row([&](int i) {
        row(kStep)[i] = ::fma(far, row(kConjugate)[i], row(kStep)[i]);
        row(kLeft)[i] = ::fma(-far, row(kProduct)[i], row(kLeft)[i]);
      });
      size = square(kLeft);
      const double share = size / before;
      r_.each_row(
          [&](int i) { row(kConjugate)[i] = ::fma(share, row(kConjugate)[i], row(kLeft)[i]); });
    }
    return products;
  }

  // Along the step, or where that is too far to where the first multiplier turns, which lets its
  // row go even where the cost falls by less than its rounding. Whether anything moved.
  MVNROB_HD bool move(double& cost) const {
    if (takes(1, 0, cost)) return true;
    const double turns = r_.max_rows([&](int i) {
      const double w = row(kMultiplier)[i];
      return w != 0 ? -row(kStep)[i] / w : 0.0;
    });
    return turns > 1 && takes(1 / turns, kCostRounding, cost);
  }

  // A multiplier that would turn becomes zero.
  MVNROB_HD bool takes(double length, double slack, double& cost) const {
    r_.each_row([&](int i) {
      const double w = row(kMultiplier)[i], side = w != 0 ? w : row(kGap)[i];
      const double moved = ::fma(length, row(kStep)[i], w);
      row(kTrial)[i] = moved * side > 1e-14 * w * w ? moved : 0.0;
    });
    const double square = combine(kTrial);
    const double trial = 0.5 * square + r_.sum_rows([&](int i) {
      const double w = row(kTrial)[i];
      return w > 0 ? w * r_.upper(i) : w < 0 ? w * r_.lower(i) : 0.0;
    });
    if (!(trial < cost + slack * ::fabs(cost))) return false;
    cost = trial;
    r_.each_row([&](int i) {
      row(kMultiplier)[i] = row(kTrial)[i];
      row(kAt)[i] = -along(i);
    });
    return true;
  }

  Rows& r_;
};

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

}  // namespace mvnrob::plan
