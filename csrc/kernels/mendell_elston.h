// The kernels of mendell_elston and of its reverse.
//
// Mapping: a row a block, of a warp up to n = 32 and of 128 threads beyond; as many blocks as the
// device holds, each with its own memory, stride over the rows. The decisions are those of
// csrc/cpu/mendell_elston_sweep.cpp. Limiter: latency of the chain of pivots for small rows (an
// argmin, an exchange, a column, one truncated normal each), reading the columns before for large
// ones: n^3 / 6 multiply-adds, and n^3 / 3 more in reverse (share reached: not measured).
#pragma once
#include <algorithm>

#include "kernels/block.h"
#include "kernels/mendell_elston_args.h"
#include "plan/mendell_elston.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

// Pointers into a block's memory; all by position: pivots, variables left, those that went, the
// last first. Column j of the factor, c_ij, is at j n.
class SweepMemory {
 public:
  MVNROB_DEVICE SweepMemory(unsigned char* base, int64_t n) : base_(base), n_(n) {}

  MVNROB_DEVICE SweepPivotRecord* pivots() const {
    return reinterpret_cast<SweepPivotRecord*>(base_);
  }
  MVNROB_DEVICE int32_t* variable() const { return reinterpret_cast<int32_t*>(pivots() + n_); }
  MVNROB_DEVICE double* inverse_sd() const {
    return reinterpret_cast<double*>(variable() + n_ + n_ % 2);
  }
  MVNROB_DEVICE double* upper() const { return inverse_sd() + n_; }
  MVNROB_DEVICE double* lower() const { return inverse_sd() + 2 * n_; }
  MVNROB_DEVICE double* mean() const { return inverse_sd() + 3 * n_; }
  MVNROB_DEVICE double* variance() const { return inverse_sd() + 4 * n_; }
  MVNROB_DEVICE double* error() const { return inverse_sd() + 5 * n_; }
  MVNROB_DEVICE double* weight() const { return inverse_sd() + 6 * n_; }
  MVNROB_DEVICE double* factor() const { return inverse_sd() + 7 * n_; }
  // Adjoints; to_cov of S as a symmetric matrix, its diagonal twice.
  MVNROB_DEVICE double* to_cov() const { return factor() + n_ * n_; }
  MVNROB_DEVICE double* to_upper() const { return to_cov() + n_ * n_; }
  MVNROB_DEVICE double* to_lower() const { return to_upper() + n_; }
  MVNROB_DEVICE double* to_mean() const { return to_upper() + 2 * n_; }
  MVNROB_DEVICE double* to_column() const { return to_upper() + 3 * n_; }

 private:
  unsigned char* base_;
  int64_t n_;
};

// One row; collective over a block, whose threads all hold the same scalars.
template <int threads>
class SweepKernel {
 public:
  MVNROB_DEVICE SweepKernel(const MendellElstonArgs& a, int64_t row, const Block<threads>& block,
                            unsigned char* memory)
      : a_(a), row_(row), block_(block), m_(memory, a.n), n_(a.n) {}

  MVNROB_DEVICE_FN void run() {
    const unsigned facts = read(plan::entry_error(a_.is_double));
    if (facts & plan::kNanInput) return fail(Status::nan);
    if (facts & plan::kIndefinite) return fail(Status::indefinite);
    if (facts & plan::kImpossible) {
      size_ = 0;
      log_prob_ = -HUGE_VAL;
      return;
    }
    sweep();
    if (status_ == Status::indefinite && entry_error_ < plan::entry_error(false)) {
      // Computed in float32, and indefinite by no more than that rounding.
      read(plan::entry_error(false));
      sweep();
    }
    if (status_ == Status::nan || status_ == Status::indefinite) fail(status_);
  }

  // One thread.
  MVNROB_DEVICE void write() const {
    const double complement = log_prob_ == 0 ? 0 : -::expm1(log_prob_);
    store(a_.prob, row_, ::exp(log_prob_));
    store(a_.complement, row_, complement);
    store(a_.log_prob, row_, log_prob_);
    a_.status[row_] = int64_t(status_);
    a_.n_active[row_] = size_;
    a_.n_pivots[row_] = pivots_;
  }

  MVNROB_DEVICE_FN void reverse() {
    const double factor = a_.grad[row_];
    const bool nan = log_prob_ != log_prob_;
    const double all = nan && factor != 0 ? double(NAN) : 0.0;
    const int64_t n = n_;
    for (int64_t i = block_.thread(); i < n; i += threads) {
      store(a_.to_upper, row_ * n + i, all);
      if (a_.to_lower) store(a_.to_lower, row_ * n + i, all);
    }
    if (a_.to_cov)
      for (int64_t i = block_.thread(); i < n * n; i += threads)
        store(a_.to_cov, row_ * n * n + i, all);
    block_.sync();
    if (nan || factor == 0 || pivots_ == 0 || log_prob_ == -HUGE_VAL) return;

    for (int64_t i = block_.thread(); i < size_; i += threads) {
      m_.to_upper()[i] = m_.to_lower()[i] = m_.to_mean()[i] = 0;
      for (int64_t k = 0; k < size_; ++k) m_.to_cov()[k * n + i] = 0;
    }
    block_.sync();
    for (int j = pivots_ - 1; j >= 0; --j) reverse_pivot(j);
    for (int i = block_.thread(); i < size_; i += threads) {
      const double scale = factor * m_.inverse_sd()[i];
      store(a_.to_upper, row_ * n + m_.variable()[i], scale * m_.to_upper()[i]);
      if (a_.to_lower) store(a_.to_lower, row_ * n + m_.variable()[i], scale * m_.to_lower()[i]);
    }
    if (a_.to_cov)
      for (int i = 0; i < size_; ++i) write_cov(factor, i);
  }

 private:
  MVNROB_DEVICE void fail(Status status) {
    log_prob_ = NAN;
    status_ = status;
    if (pivots_ == 0 && !swept_) size_ = 0;
  }

  MVNROB_DEVICE void store(void* p, int64_t i, double x) const {
    if (a_.is_double)
      static_cast<double*>(p)[i] = x;
    else
      static_cast<float*>(p)[i] = float(x);
  }

  // Keeps the variables that have limits, in order, in units of their standard deviations.
  MVNROB_DEVICE_FN unsigned read(double entry_error) {
    entry_error_ = entry_error;
    status_ = Status::exact;
    log_prob_ = 0;
    pivots_ = columns_ = 0;
    swept_ = false;
    double largest = 0;
    for (int32_t i = block_.thread(); i < n_; i += threads)
      largest = math::max(a_.covariance(row_, i, i), largest);
    largest = block_.max(largest);
    unsigned facts = 0;
    int kept = 0;
    for (int32_t begin = 0; begin < n_; begin += threads) {
      const int32_t i = begin + block_.thread();
      plan::Variable v{0, 0, 0, false, 0};
      if (i < n_)
        v = plan::read_variable(a_.limit(a_.upper, row_, i),
                                a_.lower ? a_.limit(a_.lower, row_, i) : -HUGE_VAL,
                                a_.covariance(row_, i, i), largest, entry_error);
      facts |= v.facts;
      int total = 0;
      const int at = kept + block_.rank(v.active, total);
      kept += total;
      if (!v.active) continue;
      m_.variable()[at] = i;
      m_.inverse_sd()[at] = v.inverse_sd;
      m_.upper()[at] = v.upper;
      m_.lower()[at] = v.lower;
      m_.mean()[at] = 0;
      m_.variance()[at] = 1;
      m_.error()[at] = plan::first_variance_error(entry_error);
    }
    size_ = end_ = kept;
    facts = block_.any_bits(facts);
    rectangular_ = facts & plan::kRectangular;
    return facts;
  }

  MVNROB_DEVICE double correlation(int i, int k) const {
    return a_.covariance(row_, m_.variable()[i], m_.variable()[k]) * m_.inverse_sd()[i] *
           m_.inverse_sd()[k];
  }

  MVNROB_DEVICE double* column(int j) const { return m_.factor() + int64_t(j) * n_; }

  MVNROB_DEVICE plan::Bounds bounds(int i, double c) const {
    return plan::bounds_on_pivot(m_.lower()[i] - m_.mean()[i], m_.upper()[i] - m_.mean()[i], c);
  }

  MVNROB_DEVICE_FN void sweep() {
    swept_ = size_ > 0;
    for (int j = 0; j < end_; ++j) {
      swap(choose(j), j);
      const double variance = m_.variance()[j], sd = ::sqrt(variance), mean = m_.mean()[j];
      const double growth = m_.error()[j] / variance;
      SweepPivotRecord pivot{
          sd, {(m_.lower()[j] - mean) / sd, (m_.upper()[j] - mean) / sd}, {}, end_, end_};
      if (pivot.bounds.lower != pivot.bounds.lower || pivot.bounds.upper != pivot.bounds.upper) {
        status_ = Status::nan;
        return;
      }
      pivot.interval = math::truncated(pivot.bounds.lower, pivot.bounds.upper);
      if (plan::is_settled(log_prob_, pivot.interval.log_mass, end_ - j)) break;
      if (add_column(j, 1 / sd, growth)) {
        const Status status = leave_multiples(j, pivot, growth);
        if (status != Status::converged) {
          status_ = status;
          return;
        }
      }
      if (block_.thread() == 0) m_.pivots()[j] = pivot;
      ++pivots_;
      if (!(pivot.bounds.lower < pivot.bounds.upper)) {  // multiples that contradict each other
        log_prob_ = -HUGE_VAL;
        break;
      }
      log_prob_ += pivot.interval.log_mass;
      const double* c = column(j);
      for (int i = j + 1 + block_.thread(); i < end_; i += threads) {
        const double square = c[i] * c[i], shrink = pivot.interval.shrink;
        const double error = m_.error()[i] + square * growth * shrink;
        m_.mean()[i] += c[i] * pivot.interval.mean;
        m_.error()[i] = error;
        m_.variance()[i] = math::max(m_.variance()[i] - square * shrink, error);
      }
      block_.sync();
    }
    status_ = pivots_ > 1 ? Status::approximate : Status::exact;
    block_.sync();
  }

  MVNROB_DEVICE_FN int choose(int begin) const {
    Indexed best{HUGE_VAL, INT_MAX};
    for (int i = begin + block_.thread(); i < end_; i += threads) {
      const double upper = m_.upper()[i], mean = m_.mean()[i], variance = m_.variance()[i];
      const double key =
          rectangular_ ? plan::sweep_priority<true, double>(upper, m_.lower()[i], mean, variance)
                       : plan::sweep_priority<false, double>(upper, -HUGE_VAL, mean, variance);
      const Indexed candidate{key == key ? key : HUGE_VAL, i};
      if (goes_before(candidate, best)) best = candidate;
    }
    return block_.first(best).index;
  }

  template <class T>
  static MVNROB_DEVICE void exchange(T* p, int i, int k) {
    const T x = p[i];
    p[i] = p[k];
    p[k] = x;
  }

  // Exchanges two variables, in the columns of all pivots so far and in one that is under way.
  MVNROB_DEVICE_FN void swap(int i, int k) {
    if (i == k) return;
    block_.sync();
    if (block_.thread() == 0) {
      exchange(m_.variable(), i, k);
      exchange(m_.inverse_sd(), i, k);
      exchange(m_.upper(), i, k);
      exchange(m_.lower(), i, k);
      exchange(m_.mean(), i, k);
      exchange(m_.variance(), i, k);
      exchange(m_.error(), i, k);
    }
    for (int l = block_.thread(); l < columns_; l += threads) exchange(column(l), i, k);
    block_.sync();
  }

  // Whether any variable but ordinary ones may be among those left.
  MVNROB_DEVICE_FN bool add_column(int j, double inverse, double growth) {
    for (int l = block_.thread(); l < j; l += threads)
      m_.weight()[l] = m_.pivots()[l].interval.shrink * column(l)[j];
    columns_ = j + 1;
    block_.sync();
    double* c = column(j);
    unsigned found = 0;
    for (int i = block_.thread(); i < size_; i += threads) {
      double x = 0;
      if (i > j && i < end_) {
        x = correlation(j, i);
        const double* entry = m_.factor() + i;
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
        for (int l = 0; l < j; ++l, entry += n_) x -= *entry * m_.weight()[l];
        x *= inverse;
        found |=
            plan::relation(m_.variance()[i], m_.error()[i], x, growth) != plan::Relation::ordinary;
      }
      c[i] = x;
    }
    return block_.any_bits(found) != 0;
  }

  // Multiples of the newest pivot narrow its interval and leave.
  MVNROB_DEVICE_FN Status leave_multiples(int j, SweepPivotRecord& pivot, double growth) {
    const double* c = column(j);
    bool narrower = false;
    for (int begin = j + 1; begin < end_;) {
      Indexed next{0, INT_MAX};
      for (int i = begin + block_.thread(); i < end_ && next.index == INT_MAX; i += threads)
        if (plan::relation(m_.variance()[i], m_.error()[i], c[i], growth) !=
            plan::Relation::ordinary)
          next.index = i;
      const int i = block_.first(next).index;
      if (i == INT_MAX) break;
      const plan::Relation is = plan::relation(m_.variance()[i], m_.error()[i], c[i], growth);
      if (is == plan::Relation::nan) return Status::nan;
      if (is == plan::Relation::indefinite) return Status::indefinite;
      const plan::Bounds one = bounds(i, c[i]);
      narrower |= one.lower > pivot.bounds.lower || one.upper < pivot.bounds.upper;
      pivot.bounds.lower = math::max(one.lower, pivot.bounds.lower);
      pivot.bounds.upper = math::min(one.upper, pivot.bounds.upper);
      --end_;
      swap(i, end_);
      block_.sync();
      begin = i;
    }
    pivot.end_after = end_;
    if (narrower && pivot.bounds.lower < pivot.bounds.upper)
      pivot.interval = math::truncated(pivot.bounds.lower, pivot.bounds.upper);
    return Status::converged;
  }

  MVNROB_DEVICE_FN void reverse_pivot(int j) {
    const SweepPivotRecord pivot = m_.pivots()[j];
    const math::Truncated& t = pivot.interval;
    const double* c = column(j);
    double* to_c = m_.to_column();
    double to_mean = 0, to_shrink = 0;
    for (int i = j + block_.thread(); i < pivot.end; i += threads) {
      double x = 0;
      if (i > j && i < pivot.end_after) {
        const double* entry = m_.to_cov() + int64_t(j + 1) * n_ + i;
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
        for (int k = j + 1; k < pivot.end_after; ++k, entry += n_) x -= *entry * c[k];
        to_mean += c[i] * m_.to_mean()[i];
        to_shrink += c[i] * x;
        x = t.shrink * x + t.mean * m_.to_mean()[i];
      }
      to_c[i] = x;
    }
    to_mean = block_.sum(to_mean);
    to_shrink = block_.sum(to_shrink);
    if (block_.thread() == 0) {
      const math::TruncatedSlopes slopes = math::truncated_slopes(t, 1, to_mean, 0.5 * to_shrink);
      to_bounds(j, pivot, slopes);
    }
    block_.sync();
    double to_sd = 0;
    for (int i = j + 1 + block_.thread(); i < pivot.end; i += threads) {
      const double slope = to_c[i] / pivot.sd;
      to_sd -= slope * c[i];
      m_.to_cov()[int64_t(j) * n_ + i] = m_.to_cov()[int64_t(i) * n_ + j] = slope;
    }
    to_sd = block_.sum(to_sd);
    if (block_.thread() == 0) {
      to_sd += to_c[j];
      // A variance kept at its rounding depends on nothing.
      m_.to_cov()[int64_t(j) * n_ + j] = m_.variance()[j] > m_.error()[j] ? to_sd / pivot.sd : 0;
    }
    block_.sync();
  }

  // One thread: the slopes of pivot j's interval, handed on to the limits that it is made of.
  MVNROB_DEVICE_FN void to_bounds(int j, const SweepPivotRecord& pivot,
                                  const math::TruncatedSlopes& slopes) const {
    const int count = 1 + pivot.end - pivot.end_after;
    double lowers = 0, uppers = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < count; ++k) {
        const int i = k == 0 ? j : pivot.end_after + k - 1;
        const double c = k == 0 ? pivot.sd : column(j)[i];
        const plan::Bounds one = bounds(i, c);
        const bool is_lower = plan::bounds_meet(one.lower, pivot.bounds.lower, entry_error_);
        const bool is_upper = plan::bounds_meet(one.upper, pivot.bounds.upper, entry_error_);
        if (pass == 0) {
          lowers += is_lower;
          uppers += is_upper;
        } else {
          if (is_lower) hand_on(i, c, one.lower, slopes.lower / lowers, c < 0);
          if (is_upper) hand_on(i, c, one.upper, slopes.upper / uppers, c > 0);
        }
      }
    }
  }

  // The bound is (limit - mean) / c.
  MVNROB_DEVICE void hand_on(int i, double c, double bound, double slope, bool from_upper) const {
    if (slope == 0) return;
    (from_upper ? m_.to_upper() : m_.to_lower())[i] += slope / c;
    m_.to_mean()[i] -= slope / c;
    m_.to_column()[i] -= slope * bound / c;
  }

  // From R to row i of cov. Scaling a variable is scaling its limits back, which gives the
  // diagonal.
  MVNROB_DEVICE_FN void write_cov(double factor, int i) const {
    const int64_t n = n_, va = m_.variable()[i], base = (row_ * n + va) * n;
    const double scale = m_.inverse_sd()[i];
    double sum = 0;
    for (int k = block_.thread(); k < size_; k += threads) {
      const double slope = m_.to_cov()[int64_t(i) * n + k];
      if (k == i || slope == 0) continue;
      // As it was read: of a pair only the entry in the row of the earlier pivot.
      sum += slope * (i < k ? correlation(i, k) : correlation(k, i));
      store(a_.to_cov, base + m_.variable()[k],
            0.5 * factor * slope * (scale * m_.inverse_sd()[k]));
    }
    sum = block_.sum(sum);
    if (block_.thread() == 0) {
      if (m_.to_upper()[i] != 0) sum += m_.upper()[i] * m_.to_upper()[i];
      if (m_.to_lower()[i] != 0) sum += m_.lower()[i] * m_.to_lower()[i];
      store(a_.to_cov, base + va, -0.5 * factor * sum * (scale * scale));
    }
  }

  const MendellElstonArgs& a_;
  const int64_t row_;
  const Block<threads>& block_;
  const SweepMemory m_;
  const int n_;
  int size_ = 0, end_ = 0, pivots_ = 0, columns_ = 0;
  bool rectangular_ = false, swept_ = false;
  double entry_error_ = 0, log_prob_ = 0;
  Status status_ = Status::exact;
};

template <int threads, bool reverse>
struct MendellElston {
  using Args = MendellElstonArgs;
  static constexpr int kThreads = threads;
  static constexpr int kResidentBlocks = 384 / threads;
  using Shared = typename Block<threads>::Shared;
  static constexpr size_t kSharedBytes = sizeof(Shared);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const Block<threads> block(*dynamic_shared<Shared>());
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
      SweepKernel<threads> kernel(a, row, block, a.memory + int64_t(blockIdx.x) * a.block_bytes);
      kernel.run();
      if constexpr (reverse)
        kernel.reverse();
      else if (block.thread() == 0)
        kernel.write();
      block.sync();  // the next row writes where this one still reads
    }
  }
};

// The host's part: which kernel, how many blocks. Launcher as in mvn_cdf_schedule.h.
constexpr int32_t kWarpSweep = 32;  // up to here a warp works alone

template <class Use>
auto with_sweep(const MendellElstonArgs& a, const Use& use) {
  const bool reverse = a.grad != nullptr;
  if (a.n <= kWarpSweep)
    return reverse ? use(MendellElston<32, true>{}) : use(MendellElston<32, false>{});
  return reverse ? use(MendellElston<128, true>{}) : use(MendellElston<128, false>{});
}

template <class Launcher>
int64_t sweep_blocks(Launcher& launcher, const MendellElstonArgs& a) {
  return with_sweep(a, [&](auto body) {
    using Body = decltype(body);
    const int64_t resident = launcher.template resident_blocks<Body>(Body::kSharedBytes);
    return std::max<int64_t>(1, std::min(a.rows, resident));
  });
}

// `a` with memory of sweep_bytes(a) for each of `blocks` blocks.
template <class Launcher>
void run_sweep(Launcher& launcher, const MendellElstonArgs& a, int64_t blocks) {
  with_sweep(a, [&](auto body) {
    using Body = decltype(body);
    launcher.template launch<Body>(unsigned(blocks), Body::kSharedBytes, a);
  });
}

}  // namespace mvnrob::kernels
