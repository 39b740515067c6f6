// A row of mvn_cdf_pathwise once its sums are there: the program's places, the factor's positions,
// and the sums as they become derivatives to the factor and to the covariance.
//
// The sums of a place are two of its limits, then one of each pivot. For slopes to cov they turn in
// place, and for all contrasts of the shifts, to the derivative to that place's row of the factor
// (make_bars), and then to the covariance (mvn_cdf_pathwise_cov.h, mvn_cdf_pathwise_solve.h).
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_pathwise_args.h"
#include "plan/ordering.h"

namespace mvnrob::kernels {

class PathwiseRow {
 public:
  MVNROB_DEVICE PathwiseRow(const MvnCdfPathwiseArgs& a, int64_t row)
      : a_(a),
        row_(row),
        m_(a.plan, row),
        size_(m_.state()->facts.variables),
        pivots_(m_.state()->facts.pivots),
        sampled_(size_ - m_.state()->live) {}

  MVNROB_DEVICE int size() const { return size_; }
  MVNROB_DEVICE int pivots() const { return pivots_; }
  MVNROB_DEVICE int sampled() const { return sampled_; }  // places
  MVNROB_DEVICE const RowMemory<double>& memory() const { return m_; }

  // ---- places in the program ----

  MVNROB_DEVICE double* sums(int shift, int place) const {
    return a_.sums + ((row_ * kShifts + shift) * a_.plan.n + place) * a_.width;
  }
  MVNROB_DEVICE int position(int place) const { return m_.row_of()[place]; }
  // Pivots that the row at this place depends on, and what its coefficients are divided by.
  MVNROB_DEVICE int columns(int place) const {
    return place < sampled_ ? m_.pivot_of()[place] : pivots_;
  }
  MVNROB_DEVICE double divisor(int place) const {
    const int i = position(place);
    return place < sampled_ ? m_.factor()[int64_t(m_.pivot_of()[place]) * size_ + i]
                            : ::sqrt(m_.variance()[i]);
  }
  MVNROB_DEVICE plan::Bounds bounds(int place) const {
    const int i = position(place);
    return plan::bounds_on_pivot(m_.lower()[i], m_.upper()[i], divisor(place));
  }

  // ---- positions in the factor ----

  // Of column l; beyond the end of a row there is what there is.
  MVNROB_DEVICE const double* factor(int l) const { return m_.factor() + int64_t(l) * size_; }
  // Columns that row i has: up to the diagonal, to its pivot, or where it completes all.
  MVNROB_DEVICE int end(int i) const {
    if (i < pivots_) return i + 1;
    const int group = m_.group()[i];
    return group < 0 ? pivots_ : group + 1;
  }
  // Of each position, its place, once make_bars has been there.
  MVNROB_DEVICE int32_t* place_of() const { return reinterpret_cast<int32_t*>(m_.scratch()); }
  // The derivative to row i, [pivots], zero from end(i) on.
  MVNROB_DEVICE double* bar(int contrast, int i) const { return sums(contrast, place_of()[i]) + 2; }
  // And that to the variance of one that completes; of others 0.
  MVNROB_DEVICE double& to_variance(int contrast, int i) const {
    return sums(contrast, place_of()[i])[0];
  }

  // The sums of a place, of all shifts, to half the derivative to its row of the factor, of all
  // contrasts (the other half is of the entry across the diagonal); by a warp. A contrast is the
  // sum of weighted shifts under the signs of a row of a Hadamard matrix: the first has none, and
  // seven independent estimates of the error follow.
  MVNROB_DEVICE_FN void make_bars(int place, int lane) const {
    const int i = position(place), end = columns(place);
    const double d = divisor(place);
    const plan::Bounds b = bounds(place);
    double to_divisor[kShifts];
    MVNROB_UNROLL
    for (int s = 0; s < kShifts; ++s) to_divisor[s] = 0;
    MVNROB_ROLLED
    for (int side = 0; side < 2; ++side) {
      double x[kShifts];
      contrasts(place, side, x);
      const double limit = side == 0 ? b.upper : b.lower;
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s)
        if (lane == 0 && x[s] != 0) to_divisor[s] += x[s] * limit;
    }
    MVNROB_ROLLED
    for (int l = lane; l < end; l += kWarp) {
      const double entry = factor(l)[i];
      double x[kShifts];
      contrasts(place, 2 + l, x);
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) {
        const double to_entry = -x[s] / d;
        to_divisor[s] += to_entry * entry;
        sums(s, place)[2 + l] = 0.5 * to_entry;
      }
    }
    __syncwarp();  // all lanes have read the sums of the limits
    MVNROB_UNROLL
    for (int s = 0; s < kShifts; ++s) to_divisor[s] = warp_sum(to_divisor[s]) / -d;
    const bool completes = place >= sampled_;
    if (lane == 0) {
      place_of()[i] = place;
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) {
        sums(s, place)[0] = completes ? to_divisor[s] / (2 * d) : 0.0;
        if (!completes) sums(s, place)[2 + end] = 0.5 * to_divisor[s];
      }
    }
    if (!completes) return;
    MVNROB_ROLLED
    for (int l = lane; l < end; l += kWarp) {
      const double entry = factor(l)[i] / (2 * d);
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) sums(s, place)[2 + l] -= to_divisor[s] * entry;
    }
  }

  // The derivatives to row i of the covariance and their variances, from those of all contrasts to
  // the correlation; by a warp.
  MVNROB_DEVICE_FN void write_cov(int i, int lane) const {
    const int64_t n = a_.plan.n, matrix = row_ * n * n, to = m_.variable()[i];
    const double scale = m_.inverse_sd()[i];
    const int end = i < pivots_ ? i + 1 : pivots_;
    MVNROB_ROLLED
    for (int j = lane; j < end; j += kWarp) {
      const int64_t other = m_.variable()[j];
      write(matrix + to * n + other, matrix + other * n + to, scale * m_.inverse_sd()[j],
            [&](int contrast) { return bar(contrast, i)[j]; });
    }
    if (i >= pivots_ && lane == 0)
      write(matrix + to * n + to, matrix + to * n + to, scale * scale,
            [&](int contrast) { return to_variance(contrast, i); });
  }

 private:
  // The weights anew: in registers through a loop they would be too many.
  MVNROB_DEVICE void contrasts(int place, int number, double (&x)[kShifts]) const {
    MVNROB_UNROLL
    for (int s = 0; s < kShifts; ++s) x[s] = a_.weight[row_ * kShifts + s] * sums(s, place)[number];
    MVNROB_UNROLL
    for (int half = 1; half < kShifts; half *= 2) {
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) {
        if (s & half) continue;
        const double first = x[s], second = x[s | half];
        x[s] = first + second;
        x[s | half] = first - second;
      }
    }
  }

  template <class Of>
  MVNROB_DEVICE void write(int64_t at, int64_t across, double scale, const Of& of) const {
    double variance = 0;
    MVNROB_UNROLL
    for (int contrast = kShifts - 1; contrast > 0; --contrast) {
      const double x = of(contrast) * scale;
      variance += x * x / (kShifts - 1);
    }
    a_.cov[at] = a_.cov[across] = of(0) * scale;
    a_.cov_variance[at] = a_.cov_variance[across] = variance;
  }

  const MvnCdfPathwiseArgs& a_;
  const int64_t row_;
  const RowMemory<double> m_;
  const int size_, pivots_, sampled_;
};

}  // namespace mvnrob::kernels
