// The kernel of pivoted_cholesky: mvn_cdf_factor.h on its own.
//
// Mapping: a row a block, of a warp up to n = 32 and of 128 or 256 threads beyond; blocks stride
// over the rows. The decisions are those of csrc/cpu/pivoted_cholesky.cpp. Limiter: that of the
// factor in mvn_cdf_plan.h, latency of the chain of pivots for small rows, reading the columns
// before for large ones: m k^2 / 2 multiply-adds, and writing the result, whose rows lie across.
#pragma once
#include <algorithm>

#include "kernels/mvn_cdf_factor.h"
#include "kernels/pivoted_cholesky_args.h"

namespace mvnrob::kernels {

// One row; collective over a block.
template <int threads>
class PivotedRow {
 public:
  MVNROB_DEVICE PivotedRow(const PivotedCholeskyArgs& a, int64_t row, const Block<threads>& block,
                           RowState& s)
      : a_(a), in_(a.plan), row_(row), block_(block), s_(s), m_(a.plan, row) {}

  MVNROB_DEVICE_FN void run() {
    Status status = Status::truncated;
    // A float64 matrix that was computed in float32 is indefinite by float32 rounding.
    MVNROB_ROLLED
    for (int attempt = 0; attempt < (in_.is_double ? 2 : 1); ++attempt) {
      status = read();
      if (status == Status::truncated)
        status = grow(plan::entry_error(attempt == 0 && in_.is_double));
      if (status != Status::indefinite) break;
    }
    write(status);
  }

 private:
  // Keeps the variables that have a variance, in order, as the factor's rows; `truncated` where
  // there is something to factor. m_.alike() has their positions, by variable, and else -1.
  MVNROB_DEVICE_FN Status read() {
    const double entry_error = plan::entry_error(in_.is_double);
    double largest = 0;
    for (int32_t i = block_.thread(); i < in_.n; i += threads)
      largest = math::max(in_.covariance(row_, i, i), largest);
    largest_ = block_.max(largest);
    int kept = 0;
    unsigned facts = 0;
    for (int32_t first = 0; first < in_.n; first += threads) {
      const int32_t i = first + block_.thread();
      double variance = 0;
      plan::Variable v{0, 0, 0, false, 0};
      if (i < in_.n) {
        variance = in_.covariance(row_, i, i);
        const double lower = in_.lower ? in_.limit(in_.lower, row_, i) : -HUGE_VAL;
        v = plan::read_variable(in_.limit(in_.upper, row_, i), lower, variance, largest_,
                                entry_error);
        facts |= v.facts;
      }
      const bool keep = i < in_.n && !(v.facts & (plan::kZeroVariance | plan::kNanInput));
      int total = 0;
      const int k = kept + block_.rank(keep, total);
      kept += total;
      if (i < in_.n) m_.alike()[i] = keep ? k : -1;
      if (!keep) continue;
      m_.variable()[k] = i;
      m_.group()[k] = -1;
      m_.inverse_sd()[k] = 1 / ::sqrt(variance);
      m_.upper()[k] = v.active ? v.upper : HUGE_VAL;
      m_.lower()[k] = v.active ? v.lower : -HUGE_VAL;
    }
    facts = block_.any_bits(facts);
    block_.sync();
    if (block_.thread() == 0) {
      s_.facts = {};
      s_.facts.variables = kept;
      s_.live = kept;
      s_.rectangular = (facts & plan::kRectangular) != 0;
    }
    block_.sync();
    if (facts & (plan::kNanInput | plan::kEmpty)) return Status::nan;
    return facts & plan::kIndefinite ? Status::indefinite : Status::truncated;
  }

  MVNROB_DEVICE_FN Status grow(double entry_error) {
    const unsigned beside = look_beside_zeros(entry_error);
    if (beside) return beside & kNotANumber ? Status::nan : Status::indefinite;
    for (int k = block_.thread(); k < s_.facts.variables; k += threads) {
      m_.variance()[k] = 1;
      m_.mean()[k] = 0;
      m_.variance_error()[k] = in_.is_factor() ? plan::first_factor_error(entry_error)
                                               : plan::first_variance_error(entry_error);
      if (in_.is_factor()) m_.reference()[k] = 1;
    }
    if (block_.thread() == 0) s_.plan.target = a_.columns;
    block_.sync();
    const Status failure = FactorKernel<double, Block<threads>>(in_, row_, block_, s_).grow();
    block_.sync();
    if (failure != Status::converged) return failure;
    return s_.facts.exhausted ? Status::exact : Status::truncated;
  }

  // A variable of zero variance has no covariance with any.
  MVNROB_DEVICE_FN unsigned look_beside_zeros(double entry_error) const {
    if (in_.is_factor() || s_.facts.variables == in_.n) return 0;
    unsigned found = 0;
    for (int32_t i = 0; i < in_.n; ++i) {
      if (m_.alike()[i] >= 0) continue;
      for (int32_t j = block_.thread(); j < in_.n; j += threads) {
        const double covariance = in_.stored(row_, i, j);
        if (covariance != covariance)
          found |= kNotANumber;
        else if (i != j && !plan::is_valid_beside_zero(covariance, in_.stored(row_, j, j), largest_,
                                                       entry_error))
          found |= kNegative;
      }
    }
    return block_.any_bits(found);
  }

  MVNROB_DEVICE_FN void write(Status status) {
    const bool failed = status == Status::nan || status == Status::indefinite;
    const int size = s_.facts.variables, rank = failed ? 0 : s_.facts.pivots;
    // Pivots have moved.
    for (int p = block_.thread(); p < size; p += threads) m_.alike()[m_.variable()[p]] = p;
    block_.sync();
    const int64_t n = in_.n, first = row_ * n;
    int others = rank;
    for (int32_t start = 0; start < in_.n; start += threads) {
      const int32_t i = start + block_.thread();
      const int p = i < in_.n ? m_.alike()[i] : -1;
      const bool is_pivot = p >= 0 && p < rank;
      int total = 0;
      const int k = others + block_.rank(i < in_.n && !is_pivot, total);
      others += total;
      if (i >= in_.n) continue;
      a_.order[first + (is_pivot ? p : k)] = i;
      const double nothing = failed ? double(NAN) : 0.0;
      const double sd = p >= 0 && !failed ? 1 / m_.inverse_sd()[p] : 0;
      const bool has_rest = p >= rank && !failed;
      store(a_.residual, first + i, has_rest ? m_.variance()[p] * (sd * sd) : nothing);
      for (int l = 0; l < a_.columns; ++l) {
        const bool has_entry = p >= l && l < rank;
        store(a_.factor, (first + i) * a_.columns + l,
              has_entry ? m_.factor()[int64_t(l) * size + p] * sd : nothing);
      }
    }
    if (block_.thread() == 0) {
      a_.rank[row_] = rank;
      a_.status[row_] = int64_t(status);
    }
  }

  MVNROB_DEVICE void store(void* p, int64_t i, double x) const {
    if (in_.is_double)
      static_cast<double*>(p)[i] = x;
    else
      static_cast<float*>(p)[i] = float(x);
  }

  const PivotedCholeskyArgs& a_;
  const MvnCdfArgs& in_;
  const int64_t row_;
  const Block<threads>& block_;
  RowState& s_;
  const RowMemory<double> m_;
  double largest_ = 0;
};

template <int threads>
struct PivotedCholesky {
  using Args = PivotedCholeskyArgs;
  static constexpr int kThreads = threads;
  static constexpr int kResidentBlocks = 384 / threads;
  struct Shared {
    typename Block<threads>::Shared block;
    RowState state;
  };
  static constexpr size_t kSharedBytes = most_factor_shared(threads, sizeof(Shared));
  static_assert(threads != kGrowThreads || sizeof(Shared) <= kFactorReserve);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const Block<threads> block(shared.block);
    for (int64_t row = blockIdx.x; row < a.plan.rows; row += gridDim.x) {
      PivotedRow<threads>(a, row, block, shared.state).run();
      block.sync();  // the next row writes the state that this one still reads
    }
  }
};

// The host's part. Launcher as in mvn_cdf_schedule.h.

// Whether a row's memory has room for the result's columns alone, not for all entries to come.
inline bool only_columns(const PivotedCholeskyArgs& a) {
  return a.plan.n <= 256 || a.plan.is_factor() ||
         !pays_to_subtract(a.plan.n, kPanel, a.columns - kPanel);
}

inline RowLayout pivoted_layout(const PivotedCholeskyArgs& a) {
  const int64_t n = a.plan.n;
  RowLayout l{};
  Offsets o;
  for (int64_t* p : {&l.variable, &l.group, &l.alike}) *p = o.take(4 * n);
  for (int64_t* p :
       {&l.inverse_sd, &l.upper, &l.lower, &l.variance, &l.mean, &l.variance_error, &l.scratch})
    *p = o.take(8 * n);
  l.factor = o.take(8 * n * (only_columns(a) ? a.columns : n));
  if (a.plan.is_factor()) {
    l.directions = o.take(8 * int64_t(a.columns) * a.plan.factor_columns);
    l.reference = o.take(8 * n);
    l.rest = o.take(8 * n);
  }
  l.bytes = round_up(o.end(), 128);
  return l;
}

// One tile: `a` with input and output set, memory of pivoted_layout(a).bytes for each row.
template <class Launcher>
void run_pivoted_tile(Launcher& launcher, PivotedCholeskyArgs a, unsigned char* memory) {
  a.plan.layout = pivoted_layout(a);
  a.plan.columns_only = only_columns(a);
  a.plan.memory = memory;
  const auto launch = [&](auto body) {
    using Body = decltype(body);
    const size_t bytes = launcher.template most_shared<Body>();
    const int64_t resident = launcher.template resident_blocks<Body>(bytes);
    const int64_t blocks = std::max<int64_t>(1, std::min(a.plan.rows, resident));
    if (a.plan.factor_shared == 0) a.plan.factor_shared = int32_t(bytes);
    launcher.template launch<Body>(unsigned(blocks), bytes, a);
  };
  if (a.plan.n <= 32)
    launch(PivotedCholesky<32>{});
  else if (a.plan.n <= 256)
    launch(PivotedCholesky<128>{});
  else
    launch(PivotedCholesky<256>{});
}

}  // namespace mvnrob::kernels
