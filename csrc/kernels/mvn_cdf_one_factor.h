// Independent blocks of a row, each of one common factor (plan/one_factor.h) or of three variables
// at most: how they are recognised and how the rest of the row is left alone, which is collective
// over a block and part of planning, and a kernel that integrates them. It then takes the rows of
// at most three variables (mvn_cdf_closed_form.h): in most rounds there are neither, and a launch
// that has nothing to do takes a device 2 us.
//
// Mapping: a block takes a row, its threads the variables, and each evaluation of the integrand is
// a sum over the block; all threads run the same quadrature, and the same closed form of three.
// A thread takes a row of at most three.
// Limiter: double-precision arithmetic of Phi, and for few variables the latency of the sums.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_closed_form.h"
#include "kernels/mvn_cdf_data.h"
#include "plan/one_factor.h"

namespace mvnrob::kernels {

// Where a recognised row keeps its blocks, in memory that only samples use otherwise. A block's end
// is marked where it has not one factor: it has a closed form, or belongs to the rest.
template <class scalar_t>
struct OneFactorMemory {
  int32_t* order;  // rows, block by block
  uint32_t* end;   // of each block, kFew or kOther added
  int32_t* taken;  // of each row: kTaken while blocks are looked for, kRest
  double *load, *density, *rest;
  plan::Residuals* residuals;  // of each block

  static constexpr uint32_t kFew = 1u << 31, kOther = 1u << 30;
  static constexpr int32_t kTaken = 1, kRest = 2;

  MVNROB_DEVICE OneFactorMemory(const RowMemory<scalar_t>& m, int size)
      : order(m.row_of()),
        end(m.shifts()),
        taken(m.pivot_of()),
        load(m.event_mass()),
        density(m.event_mass() + size),
        rest(m.scratch()),
        residuals(reinterpret_cast<plan::Residuals*>(m.event_share())) {}
};

template <class scalar_t, int threads>
class OneFactorFinder {
 public:
  MVNROB_DEVICE OneFactorFinder(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                                RowState& s)
      : a_(a),
        row_(row),
        block_(block),
        s_(s),
        m_(a, row),
        size_(s.facts.variables),
        own_(m_, size_) {}

  // Which of the correlation's blocks are of this form, with a quadrature that is quick; the row's
  // memory then has them.
  MVNROB_DEVICE_FN plan::ExactBlocks recognise() {
    for (int i = block_.thread(); i < size_; i += threads) own_.taken[i] = 0;
    block_.sync();
    int blocks = 0, others = 0, first = 0;
    while (first < size_) {
      const int last = collect(first);
      plan::Residuals residuals{0, 0};
      const bool fits = fit(first, last, residuals), few = last - first <= 3;
      if (block_.thread() == 0) {
        own_.end[blocks] = uint32_t(last) | (fits ? 0 : few ? own_.kFew : own_.kOther);
        own_.residuals[blocks] = residuals;
      }
      if (!fits && !few) {
        ++others;
        for (int k = first + block_.thread(); k < last; k += threads)
          own_.taken[own_.order[k]] = own_.kRest;
        block_.sync();
      }
      ++blocks;
      first = last;
    }
    if (block_.thread() == 0) s_.program.blocks = blocks;
    block_.sync();
    return others == 0        ? plan::ExactBlocks::all
           : others == blocks ? plan::ExactBlocks::none
                              : plan::ExactBlocks::some;
  }

 private:
  MVNROB_DEVICE double correlation(int i, int k) const {
    return a_.covariance(row_, m_.variable()[i], m_.variable()[k]) * m_.inverse_sd()[i] *
           m_.inverse_sd()[k];
  }
  MVNROB_DEVICE double between(int i, int k) const {  // places in the order
    return correlation(own_.order[i], own_.order[k]);
  }

  // The next connected component of the entries that are not zero, as csrc/cpu/one_factor.cpp lists
  // it; returns its end.
  MVNROB_DEVICE_FN int collect(int count) {
    Indexed next{0, INT_MAX};
    for (int i = block_.thread(); i < size_; i += threads)
      if (!own_.taken[i] && i < next.index) next.index = i;
    next = block_.first(next);
    if (block_.thread() == 0) {
      own_.order[count] = next.index;
      own_.taken[next.index] = own_.kTaken;
    }
    block_.sync();
    int at = count++;
    for (; at < count && count < size_; ++at) {
      const int from = own_.order[at];
      for (int first = 0; first < size_; first += threads) {
        const int i = first + block_.thread();
        const bool joined = i < size_ && !own_.taken[i] && !(correlation(from, i) == 0);
        int total = 0;
        const int place = count + block_.rank(joined, total);
        if (joined) {
          own_.order[place] = i;
          own_.taken[i] = own_.kTaken;
        }
        count += total;
        block_.sync();
      }
    }
    return count;
  }

  // Of places first + 1 .. last - 1 but `except`, that with the largest value; ties to the first.
  template <class Value>
  MVNROB_DEVICE_FN Indexed largest(int first, int last, int except, const Value& value) const {
    Indexed best{0, INT_MAX};
    for (int k = first + 1 + block_.thread(); k < last; k += threads) {
      if (k == except) continue;
      const Indexed candidate{-value(k), k};
      if (goes_before(candidate, best)) best = candidate;
    }
    return block_.first(best);
  }

  MVNROB_DEVICE_FN bool fit(int first, int last, plan::Residuals& residuals) {
    const double error = s_.facts.entry_error;
    double head = 0;
    if (last - first == 2) head = ::sqrt(::fabs(between(first, first + 1)));
    if (last - first > 2) {
      const int near =
          largest(first, last, -1, [&](int k) { return ::fabs(between(first, k)); }).index;
      if (near == INT_MAX) return false;  // NaN, all of them
      const Indexed other = largest(
          first, last, near, [&](int k) { return ::fabs(between(first, k) * between(near, k)); });
      if (!(other.key < 0)) return false;
      head = plan::load_from(between(first, near), between(first, other.index),
                             between(near, other.index), error);
    }
    if (last - first > 1 && !(head > 0)) return false;
    double least = 1, whole = 0;
    unsigned wrong = 0;
    for (int k = first + block_.thread(); k < last; k += threads) {
      const int i = own_.order[k];
      const double load = k == first ? head : between(first, k) / head;
      const double rest = plan::rest_of_load(load, error);
      own_.load[k] = rest > 0 ? load : load > 0 ? 1.0 : -1.0;
      own_.rest[k] = rest;
      own_.density[k] = plan::density_of(m_.upper()[i], m_.lower()[i]);
      wrong |= !(::fabs(load) <= 1 + 8 * error);
      if (rest == 0)
        whole += 1;
      else
        least = math::min(rest, least);
    }
    wrong = block_.any_bits(wrong);
    whole = block_.sum(whole);
    least = block_.min(least);
    if (wrong || whole > 1 || !plan::is_quick(least)) return false;
    const bool rounded = error > s_.facts.double_error;
    double moved = 0, most = 0;
    for (int i = first + 1; i < last; ++i) {
      unsigned off = 0;
      for (int k = first + block_.thread(); k < i; k += threads) {
        const double r = between(i, k), residual = r - own_.load[i] * own_.load[k];
        off |= !plan::is_product(r, own_.load[i], own_.load[k], error);
        most = math::max(::fabs(residual), most);
        moved +=
            plan::moved_by(residual, own_.density[i], own_.density[k], own_.rest[i], own_.rest[k]);
      }
      if (block_.any_bits(off)) return false;
    }
    moved = block_.sum(moved);
    most = block_.max(most);
    if (!rounded) residuals = {moved, most};
    return true;
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Block<threads>& block_;
  RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_;
  const OneFactorMemory<scalar_t> own_;
};

// The exact blocks are integrated: the rows of the others, in their order, become the factor's.
template <class scalar_t, int threads>
MVNROB_DEVICE_FN void keep_rest(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                                RowState& s) {
  using Memory = OneFactorMemory<scalar_t>;
  const RowMemory<scalar_t> m(a, row);
  const int size = s.facts.variables;
  const int32_t* taken = Memory(m, size).taken;
  int kept = 0;
  unsigned rectangular = 0;
  for (int first = 0; first < size; first += threads) {
    const int i = first + block.thread();
    const bool keeps = i < size && taken[i] == Memory::kRest;
    const int32_t variable = keeps ? m.variable()[i] : 0;
    const double inverse_sd = keeps ? m.inverse_sd()[i] : 0, upper = keeps ? m.upper()[i] : 0,
                 lower = keeps ? m.lower()[i] : -HUGE_VAL;
    int total = 0;
    const int k = kept + block.rank(keeps, total);  // a barrier: all have read
    kept += total;
    if (!keeps) continue;
    rectangular |= lower != -HUGE_VAL;
    m.variable()[k] = variable;
    m.inverse_sd()[k] = inverse_sd;
    m.upper()[k] = upper;
    m.lower()[k] = lower;
  }
  rectangular = block.any_bits(rectangular);
  if (block.thread() == 0) {
    s.rectangular = rectangular != 0;
    s.live = s.facts.variables = kept;
  }
  block.sync();
}

template <class scalar_t>
struct MvnCdfOneFactor {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 2;
  using Team = Block<kThreads>;
  static constexpr size_t kSharedBytes = sizeof(typename Team::Shared);

  static MVNROB_DEVICE void run(const Args& a) {
    const Team block(*dynamic_shared<typename Team::Shared>());
    const int64_t rows = a.counters[a.round()].factored;
    for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) integrate(a, a.factored[i], block);
    MvnCdfClosedForm<scalar_t>::run(a);
  }

 private:
  static MVNROB_DEVICE void integrate(const Args& a, int64_t row, const Team& block) {
    const RowMemory<scalar_t> m(a, row);
    RowState& s = *m.state();
    const OneFactorMemory<scalar_t> own(m, s.facts.variables);
    plan::ProductOfBlocks product;
    int first = 0;
    for (int b = 0; b < s.program.blocks; ++b) {
      const uint32_t end = own.end[b];
      const int last = int(end & ~(own.kFew | own.kOther));
      if (end & own.kOther) {
        first = last;
        continue;
      }
      if (end & own.kFew) {
        product.add(math::box_probability(
            box_of(a, row, m, s.facts.entry_error, own.order + first, last - first),
            80 * s.facts.entry_error));
      } else if (last - first == 1) {
        const int i = own.order[first];
        product.add(m.lower()[i], m.upper()[i], plan::mass_outside(m.upper()[i], m.lower()[i]));
      } else {
        product.add(integrate_block(m, own, first, last, own.residuals[b], block));
      }
      first = last;
    }
    double rest = 0, mass = 0, largest = 0;  // of the other blocks' variables
    for (int i = block.thread(); i < s.facts.variables; i += kThreads) {
      if (own.taken[i] != own.kRest) continue;
      const double one = plan::mass_outside(m.upper()[i], m.lower()[i]);
      rest += 1;
      mass += one;
      largest = math::max(one, largest);
    }
    rest = block.sum(rest);
    mass = block.sum(mass);
    largest = block.max(largest);
    block.sync();  // all have read the state
    if (block.thread() == 0) {
      if (!product.found)
        s.plan.step = plan::without_blocks(s.plan, a.options);
      else if (rest > 0)
        s.plan.step =
            plan::separated(s.plan, a.options, product.value, product.complement, product.log_value,
                            product.error, product.log_error, int32_t(rest), mass, largest);
      else
        s.plan.step = plan::closed(s.plan, a.options, product.value, product.complement,
                                   product.error_of_smaller(), product.known_log_value(),
                                   product.log_error, product.log_slope);
    }
    block.sync();
  }

  static MVNROB_DEVICE_FN plan::OneFactorProbability integrate_block(
      const RowMemory<scalar_t>& m, const OneFactorMemory<scalar_t>& own, int first, int last,
      const plan::Residuals& residuals, const Team& block) {
    double lower = -HUGE_VAL, upper = HUGE_VAL, largest = 0;
    for (int k = first + block.thread(); k < last; k += kThreads) {
      const int i = own.order[k];
      largest = math::max(plan::mass_outside(m.upper()[i], m.lower()[i]), largest);
      if (own.rest[k] != 0) continue;
      const plan::Bounds one = plan::bounds_on_pivot(m.lower()[i], m.upper()[i], own.load[k]);
      lower = one.lower;
      upper = one.upper;
    }
    largest = block.max(largest);
    lower = block.max(lower);
    upper = block.min(upper);
    // The variables that the factor leaves something, their limits given y.
    const auto each = [&](double y, const auto& take) {
      for (int k = first + block.thread(); k < last; k += kThreads) {
        if (own.rest[k] == 0) continue;
        const int i = own.order[k];
        const double inverse = 1 / own.rest[k], move = own.load[k] * y;
        take((m.lower()[i] - move) * inverse, (m.upper()[i] - move) * inverse, move, inverse);
      }
    };
    const auto fails = [&](double y) {
      double value = 1, complement = 0;
      each(y, [&](double low, double high, double, double) {
        complement += value * (math::ndtr<double>(low) + math::ndtr<double>(-high));
        value *= plan::interval_probability<double>(low, high);
      });
      return -::expm1(block.sum(::log1p(-math::min(complement, 1.0))));
    };
    const auto log_holds = [&](double y) {
      double sum = 0;
      each(y, [&](double low, double high, double, double) {
        sum += math::minus_two_log_interval<double>(low, high);
      });
      return -0.5 * block.sum(sum);
    };
    const auto slopes = [&](double y) {
      plan::Slopes sum{0, 0};
      each(y, [&](double low, double high, double move, double inverse) {
        const plan::Slopes one = plan::slopes_of(low, high, move * inverse);
        sum.sum += one.sum * inverse;
        sum.rounding += one.rounding;
      });
      return plan::Slopes{block.sum(sum.sum), block.sum(sum.rounding)};
    };
    return plan::integrate_one_factor(fails, log_holds, slopes, last - first, {lower, upper},
                                      largest, residuals);
  }
};

}  // namespace mvnrob::kernels
