// From the sums of MvnCdfPathwise, or the chunks of MvnCdfPathwiseBlocked, to derivatives of
// limits: what csrc/cpu/mvn_cdf_pathwise_row.cpp does, a block for each row. mvn_cdf_pathwise_cov.h
// takes the sums on to the covariance.
//
// Limiter: latency; beside the samples it is nothing (11 us of 4.4 ms on an H100, n = 99).
#pragma once
#include "kernels/mvn_cdf_pathwise_row.h"

namespace mvnrob::kernels {

struct MvnCdfPathwisePull {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 4;
  static constexpr size_t kSharedBytes = 0;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int thread = int(threadIdx.x);
    for (int64_t row = blockIdx.x; row < a.plan.rows; row += gridDim.x) {
      if (a.failed(row))
        fail(a, row, thread);
      else
        MvnCdfPathwisePull(a, row, thread).pull();
    }
  }

 private:
  MVNROB_DEVICE MvnCdfPathwisePull(const Args& a, int64_t row, int thread)
      : a_(a),
        row_(row),
        thread_(thread),
        r_(a, row),
        m_(r_.memory()),
        size_(r_.size()),
        sampled_(r_.sampled()) {}

  static MVNROB_DEVICE_FN void fail(const Args& a, int64_t row, int thread) {
    const int64_t n = a.plan.n;
    for (int64_t e = thread; e < kShifts; e += kThreads) a.value[row * kShifts + e] = NAN;
    for (int64_t e = thread; e < kShifts * n; e += kThreads)
      a.upper[row * kShifts * n + e] = a.lower[row * kShifts * n + e] = NAN;
    if (a.wants_cov())
      for (int64_t e = thread; e < n * n; e += kThreads)
        a.cov[row * n * n + e] = a.cov_variance[row * n * n + e] = NAN;
    if (thread == 0) {
      a.pivots[row] = 0;
      a.log_unit[row] = NAN;
    }
  }

  MVNROB_DEVICE_FN void pull() {
    if (thread_ == 0) {
      a_.pivots[row_] = r_.pivots();
      a_.log_unit[row_] = a_.plan.tilt ? m_.state()->plan.log_unit : 0.0;
    }
    if (r_.pivots() > kMaxSmallPivots) {
      add_chunks();
      __syncthreads();
    }
    if (sampled_ > r_.pivots()) share_ties();
    __syncthreads();
    write_limits();
  }

  // Of each shift, in order: the value, and the sums of the limits.
  MVNROB_DEVICE_FN void add_chunks() const {
    const int numbers = int(pathwise_slot_size(size_));
    const int64_t tiles = pathwise_tiles(a_, row_);
    const int chunks = int(tiles < kPathwiseChunks ? tiles : kPathwiseChunks);
    for (int e = thread_; e < kShifts * numbers; e += kThreads) {
      const int shift = e / numbers, i = e % numbers;
      double sum = 0;
      for (int c = 0; c < chunks; ++c) sum += pathwise_slot(a_, row_, shift, c)[i];
      if (i == 0)
        a_.value[row_ * kShifts + shift] = sum;
      else
        r_.sums(shift, (i - 1) / 2)[(i - 1) % 2] = sum;
    }
  }

  // ---- multiples of one another whose limits meet share the slope equally ----

  MVNROB_DEVICE bool equal(double x, double y, double scale) const {
    const double tolerance = 64 * m_.state()->facts.entry_error;
    return x == y || ::fabs(x - y) <= tolerance * scale * (1 + ::fabs(x));
  }

  MVNROB_DEVICE bool limits_meet(int p, int q, int side) const {
    const plan::Bounds a = r_.bounds(p), b = r_.bounds(q);
    const double scale =
        1 / math::min(1.0, math::min(::fabs(r_.divisor(p)), ::fabs(r_.divisor(q))));
    return side == 0 ? equal(a.upper, b.upper, scale) : equal(a.lower, b.lower, scale);
  }

  MVNROB_DEVICE bool is_bounded(int p, int side) const {
    const plan::Bounds b = r_.bounds(p);
    return ::fabs(side == 0 ? b.upper : b.lower) < HUGE_VAL;
  }

  // Whether the rows at places p and q bound their pivot alike, from this side.
  MVNROB_DEVICE_FN bool tied(int p, int q, int side) const {
    if (!is_bounded(p, side) || !limits_meet(p, q, side)) return false;
    const int i = r_.position(p), k = r_.position(q);
    const double di = r_.divisor(p), dk = r_.divisor(q);
    const double scale = 1 / math::min(1.0, math::min(::fabs(di), ::fabs(dk)));
    for (int l = 0; l < r_.columns(p); ++l) {
      const double* column = m_.factor() + int64_t(l) * size_;
      if (!equal(column[i] / di, column[k] / dk, scale)) return false;
    }
    return true;
  }

  // A thread for the first place of each tie.
  MVNROB_DEVICE_FN void share_ties() const {
    for (int p = thread_; p < sampled_; p += kThreads) {
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
          share(p, side, count, 2, r_.columns(p));
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
        each([&](int q) { sum += r_.sums(shift, q)[number]; });
        each([&](int q) { r_.sums(shift, q)[number] = sum / count; });
      }
  }

  // ---- limits ----

  MVNROB_DEVICE_FN void write_limits() const {
    for (int e = thread_; e < kShifts * size_; e += kThreads) {
      const int shift = e / size_, place = e % size_, i = r_.position(place);
      const double d = r_.divisor(place), scale = m_.inverse_sd()[i] / d;
      const double* s = r_.sums(shift, place);
      const int64_t out = (row_ * kShifts + shift) * a_.plan.n + m_.variable()[i];
      // A negative divisor has exchanged the limits.
      a_.upper[out] = s[d < 0 ? 1 : 0] * scale;
      a_.lower[out] = s[d < 0 ? 0 : 1] * scale;
    }
  }

  const Args& a_;
  const int64_t row_;
  const int thread_;
  const PathwiseRow r_;
  const RowMemory<double> m_;
  const int size_, sampled_;
};

}  // namespace mvnrob::kernels
