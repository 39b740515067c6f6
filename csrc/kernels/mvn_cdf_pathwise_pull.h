// From the sums of MvnCdfPathwise to derivatives of limits and covariance: what
// csrc/cpu/mvn_cdf_pathwise_row.cpp does, a block for each row.
//
// Limiter: the eight passes through the factorisation, each a chain of pivots with one barrier or
// two, m k^2 / 2 multiply-adds in all and two loads for each; small beside the samples from a few
// thousand points on. Share reached: not measured.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_pathwise_args.h"
#include "plan/ordering.h"

namespace mvnrob::kernels {

template <class scalar_t>
struct MvnCdfPathwisePull {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 4;
  static constexpr size_t kSharedBytes = sizeof(typename Block<kThreads>::Shared);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const Block<kThreads> block(*dynamic_shared<typename Block<kThreads>::Shared>());
    for (int64_t row = blockIdx.x; row < a.plan.rows; row += gridDim.x) {
      if (a.failed(row))
        fail(a, row, block);
      else
        MvnCdfPathwisePull(a, row, block).pull();
      block.sync();
    }
  }

 private:
  MVNROB_DEVICE MvnCdfPathwisePull(const Args& a, int64_t row, const Block<kThreads>& block)
      : a_(a),
        row_(row),
        n_(a.plan.n),
        block_(block),
        m_(a.plan, row),
        size_(m_.state()->facts.variables),
        pivots_(m_.state()->facts.pivots),
        sampled_(size_ - m_.state()->live),
        bar_(a.bars + int64_t(blockIdx.x) * n_ * a.plan.n_order) {}

  static MVNROB_DEVICE_FN void fail(const Args& a, int64_t row, const Block<kThreads>& block) {
    const int64_t n = a.plan.n;
    for (int64_t e = block.thread(); e < kShifts; e += kThreads) a.value[row * kShifts + e] = NAN;
    for (int64_t e = block.thread(); e < kShifts * n; e += kThreads)
      a.upper[row * kShifts * n + e] = a.lower[row * kShifts * n + e] = NAN;
    if (a.wants_cov())
      for (int64_t e = block.thread(); e < n * n; e += kThreads)
        a.cov[row * n * n + e] = a.cov_variance[row * n * n + e] = NAN;
    if (block.thread() == 0) {
      a.pivots[row] = 0;
      a.log_unit[row] = NAN;
    }
  }

  MVNROB_DEVICE_FN void pull() {
    if (block_.thread() == 0) {
      a_.pivots[row_] = pivots_;
      a_.log_unit[row_] = a_.plan.tilt ? m_.state()->plan.log_unit : 0.0;
    }
    if (sampled_ > pivots_) share_ties();
    block_.sync();
    write_limits();
    if (!a_.wants_cov()) return;
    block_.sync();
    contrast_shifts();
    block_.sync();
    for (int contrast = kShifts - 1; contrast >= 0; --contrast) {
      combine(contrast);
      reverse();
      write_cov(contrast == 0);
    }
  }

  // ---- places in the program, positions in the factor ----

  MVNROB_DEVICE double* sums(int shift, int place) const {
    return a_.sums + ((row_ * kShifts + shift) * n_ + place) * a_.width;
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

  // ---- multiples of one another whose limits meet share the slope equally ----

  MVNROB_DEVICE bool equal(double x, double y, double scale) const {
    const double tolerance = 64 * m_.state()->facts.entry_error;
    return x == y || ::fabs(x - y) <= tolerance * scale * (1 + ::fabs(x));
  }

  MVNROB_DEVICE bool limits_meet(int p, int q, int side) const {
    const plan::Bounds a = bounds(p), b = bounds(q);
    const double scale = 1 / math::min(1.0, math::min(::fabs(divisor(p)), ::fabs(divisor(q))));
    return side == 0 ? equal(a.upper, b.upper, scale) : equal(a.lower, b.lower, scale);
  }

  MVNROB_DEVICE bool is_bounded(int p, int side) const {
    const plan::Bounds b = bounds(p);
    return ::fabs(side == 0 ? b.upper : b.lower) < HUGE_VAL;
  }

  // Whether the rows at places p and q bound their pivot alike, from this side.
  MVNROB_DEVICE_FN bool tied(int p, int q, int side) const {
    if (!is_bounded(p, side) || !limits_meet(p, q, side)) return false;
    const int i = position(p), k = position(q);
    const double di = divisor(p), dk = divisor(q);
    const double scale = 1 / math::min(1.0, math::min(::fabs(di), ::fabs(dk)));
    for (int l = 0; l < columns(p); ++l) {
      const double* column = m_.factor() + int64_t(l) * size_;
      if (!equal(column[i] / di, column[k] / dk, scale)) return false;
    }
    return true;
  }

  // A thread for the first place of each tie.
  MVNROB_DEVICE_FN void share_ties() const {
    for (int p = block_.thread(); p < sampled_; p += kThreads) {
      const int pivot = m_.pivot_of()[p];
      for (int side = 0; side < 2; ++side) {
        bool leads = is_bounded(p, side);
        for (int q = p - 1; leads && q >= 0 && m_.pivot_of()[q] == pivot; --q)
          leads = !tied(q, p, side);
        if (!leads) continue;
        bool both = true;
        int count = 1;
        for (int q = p + 1; q < sampled_ && m_.pivot_of()[q] == pivot; ++q) {
          if (!tied(p, q, side)) continue;
          ++count;
          both = both && limits_meet(p, q, 1 - side);
        }
        if (count == 1) continue;
        share(p, side, count, side, 1);
        // The products hold both sides: where only one meets they stay as they fell.
        if (both && a_.wants_cov() && (side == 0 || !is_bounded(p, 0)))
          share(p, side, count, 2, columns(p));
      }
    }
  }

  // The mean over the tie, for the `numbers` sums from `first` on of every shift.
  MVNROB_DEVICE_FN void share(int p, int side, int count, int first, int numbers) const {
    const auto each = [&](const auto& use) {
      use(p);
      for (int q = p + 1; q < sampled_ && m_.pivot_of()[q] == m_.pivot_of()[p]; ++q)
        if (tied(p, q, side)) use(q);
    };
    for (int shift = 0; shift < kShifts; ++shift)
      for (int number = first; number < first + numbers; ++number) {
        double sum = 0;
        each([&](int q) { sum += sums(shift, q)[number]; });
        each([&](int q) { sums(shift, q)[number] = sum / count; });
      }
  }

  // ---- limits ----

  MVNROB_DEVICE_FN void write_limits() const {
    for (int e = block_.thread(); e < kShifts * size_; e += kThreads) {
      const int shift = e / size_, place = e % size_, i = position(place);
      const double d = divisor(place), scale = m_.inverse_sd()[i] / d;
      const double* s = sums(shift, place);
      const int64_t out = (row_ * kShifts + shift) * n_ + m_.variable()[i];
      // A negative divisor has exchanged the limits.
      a_.upper[out] = s[d < 0 ? 1 : 0] * scale;
      a_.lower[out] = s[d < 0 ? 0 : 1] * scale;
    }
  }

  // ---- the covariance ----

  // The weighted shifts, in place, to their sum under the signs of each row of a Hadamard matrix:
  // the first has none, and seven independent estimates of the error follow.
  MVNROB_DEVICE_FN void contrast_shifts() const {
    for (int64_t e = block_.thread(); e < int64_t(size_) * a_.width; e += kThreads) {
      double x[kShifts];
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) x[s] = a_.weight[row_ * kShifts + s] * sums(s, 0)[e];
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
      MVNROB_UNROLL
      for (int s = 0; s < kShifts; ++s) sums(s, 0)[e] = x[s];
    }
  }

  // bar = derivative to the factor; that to the variance of a row that completes: m_.mean().
  MVNROB_DEVICE_FN void combine(int contrast) const {
    for (int place = block_.thread(); place < size_; place += kThreads) {
      const int i = position(place), end = columns(place);
      const double d = divisor(place);
      const plan::Bounds b = bounds(place);
      const double* s = sums(contrast, place);
      double to_divisor = (s[0] != 0 ? s[0] * b.upper : 0.0) + (s[1] != 0 ? s[1] * b.lower : 0.0);
      for (int l = 0; l < pivots_; ++l) {
        const int64_t at = int64_t(l) * size_ + i;
        const double to_entry = l < end ? -s[2 + l] / d : 0.0;
        if (l < end) to_divisor += to_entry * m_.factor()[at];
        bar_[at] = to_entry;
      }
      to_divisor /= -d;
      m_.mean()[i] = 0;
      if (place < sampled_) {
        bar_[int64_t(end) * size_ + i] = to_divisor;
        continue;
      }
      const double to_variance = to_divisor / (2 * d);
      m_.mean()[i] = to_variance;
      for (int l = 0; l < pivots_; ++l) {
        const int64_t at = int64_t(l) * size_ + i;
        bar_[at] -= 2 * to_variance * m_.factor()[at];
      }
    }
    block_.sync();
  }

  // Through the factorisation, from its last column on: bar becomes the derivative to the
  // correlation's columns of the pivots, m_.mean() that to its diagonal.
  MVNROB_DEVICE_FN void reverse() const {
    const double* L = m_.factor();
    const int warp = block_.thread() / kWarp, lane = block_.thread() % kWarp;
    for (int j = pivots_ - 1; j >= 0; --j) {
      const int64_t column = int64_t(j) * size_;
      const double d = L[column + j];
      double part = 0;
      for (int i = j + 1 + block_.thread(); i < size_; i += kThreads) {
        // A row of a group ends at its pivot's column.
        const bool has = i < pivots_ || m_.group()[i] < 0 || m_.group()[i] >= j;
        const double t = has ? bar_[column + i] / d : 0.0;
        bar_[column + i] = t;
        m_.scratch()[i] = t;
        if (!has) continue;
        part += t * L[column + i];
        for (int l = 0; l < j; ++l) bar_[int64_t(l) * size_ + i] -= t * L[int64_t(l) * size_ + j];
      }
      const double to_variance = (bar_[column + j] - block_.sum(part)) / (2 * d);
      for (int l = warp; l < j; l += kThreads / kWarp) {
        const double* other = L + int64_t(l) * size_;
        double sum = 0;
        for (int i = j + 1 + lane; i < size_; i += kWarp) {
          const double t = m_.scratch()[i];
          if (t != 0) sum += t * other[i];  // beyond its end a row of a group has what it likes
        }
        sum = warp_sum(sum);
        if (lane == 0) bar_[int64_t(l) * size_ + j] -= sum + 2 * to_variance * other[j];
      }
      if (block_.thread() == 0) m_.mean()[j] = to_variance;
      block_.sync();
    }
  }

  MVNROB_DEVICE void add(int i, int j, double x, bool is_sum) const {
    const int64_t at = row_ * n_ * n_ + int64_t(m_.variable()[i]) * n_ + m_.variable()[j];
    if (is_sum)
      a_.cov[at] += x;
    else
      a_.cov_variance[at] += x * x / (kShifts - 1);
  }

  MVNROB_DEVICE_FN void write_cov(bool is_sum) const {
    for (int i = block_.thread(); i < size_; i += kThreads) {
      const double scale = m_.inverse_sd()[i];
      add(i, i, m_.mean()[i] * scale * scale, is_sum);
      for (int j = 0; j < (i < pivots_ ? i : pivots_); ++j) {
        const double half = 0.5 * bar_[int64_t(j) * size_ + i] * scale * m_.inverse_sd()[j];
        add(i, j, half, is_sum);
        add(j, i, half, is_sum);
      }
    }
    block_.sync();
  }

  const Args& a_;
  const int64_t row_, n_;
  const Block<kThreads>& block_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_, sampled_;
  double* const bar_;  // [pivots][size]
};

}  // namespace mvnrob::kernels
