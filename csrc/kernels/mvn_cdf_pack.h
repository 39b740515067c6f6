// From a row's factor to the program that the samplers execute; collective over a team. What
// csrc/cpu/mvn_cdf_pack.cpp does, in the layout of mvn_cdf_data.h.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_fragments.h"
#include "kernels/mvn_cdf_halves.h"
#include "math/lattice.h"

namespace mvnrob::kernels {

template <class scalar_t, class Team>
class Packer {
 public:
  MVNROB_DEVICE Packer(const MvnCdfArgs& a, int64_t row, const Team& team, RowState& s)
      : a_(a),
        row_(row),
        team_(team),
        s_(s),
        m_(a, row),
        size_(s.facts.variables),
        pivots_(s.facts.pivots),
        sampled_(size_ - s.live),
        rows_(pivots_ <= kMaxSmallPivots ? kSmallRows : kInnerRows) {}

  MVNROB_DEVICE_FN void pack() {
    order_sampled();
    place_blocks();
    fill_sampled();
    fill_completion();
    for (int e = thread(); e < kShifts * pivots_; e += team_.size())
      m_.shifts()[e] =
          math::hash_shift(uint64_t(a_.seed[row_]), uint32_t(e / pivots_), uint32_t(e % pivots_));
    for (int e = thread(); e < kShifts; e += team_.size()) m_.totals()[e] = {0, 0, 0, 0, 0};
    team_.sync();
  }

 private:
  // row_of and pivot_of: the pivots, each followed by its group.
  MVNROB_DEVICE_FN void order_sampled() {
    if (sampled_ == pivots_) {
      for (int j = thread(); j < pivots_; j += team_.size()) m_.row_of()[j] = m_.pivot_of()[j] = j;
      team_.sync();
      return;
    }
    int start = 0;  // of this round's first pivot
    for (int first = 0; first < pivots_; first += team_.size()) {
      const int j = first + thread();
      int members = 0;
      if (j < pivots_)
        for (int i = pivots_; i < size_; ++i) members += m_.group()[i] == j;
      // Rows before pivot j of this round: counted through the scratch, one thread, in order.
      if (j < pivots_) m_.scratch()[j] = members;
      team_.sync();
      const int end = math_min(first + team_.size(), pivots_);
      int before = start, all = start;
      for (int l = first; l < end; ++l) {
        if (l < j) before += 1 + int(m_.scratch()[l]);
        all += 1 + int(m_.scratch()[l]);
      }
      if (j < pivots_) {
        m_.row_of()[before] = j;
        m_.pivot_of()[before] = j;
        for (int i = pivots_; i < size_; ++i) {
          if (m_.group()[i] != j) continue;
          ++before;
          m_.row_of()[before] = i;
          m_.pivot_of()[before] = j;
        }
      }
      start = all;
      team_.sync();
    }
  }

  // What follows from it is computed where it is used: the factor wants the registers.
  MVNROB_DEVICE int thread() const { return anew(team_.thread()); }

  // Pivots closed before sampled row r.
  MVNROB_DEVICE int known_at(int r) const { return r < sampled_ ? m_.pivot_of()[r] : pivots_; }

  MVNROB_DEVICE_FN void place_blocks() {
    if (thread() == 0) {
      const bool outer = rows_ == kInnerRows;
      int64_t coef = 0;
      int blocks = 0, outers = 0;
      for (int first = 0; first < sampled_; first += rows_) {
        const int known = known_at(first);
        int base = 0;
        if (outer) {
          const int outer_first = first / outer_rows() * outer_rows();
          base = known_at(outer_first);
          if (first == outer_first) {
            m_.outer()[outers++] = {coef, base};
            coef += outer_size(base);
          }
        }
        m_.blocks()[blocks++] = {coef, base, known};
        coef += int64_t(known - base + rows_) * rows_;
      }
      Program& p = s_.program;
      p.pivots = pivots_;
      p.tensor = tensor();
      p.sampled_blocks = blocks;
      p.sampled_outer = outers;
      p.completion_rows = int(round_up(s_.live, completion_unit()));
      p.completion_coef = coef;
    }
    team_.sync();
  }

  // Numbers of the panel of an outer block, or of as many rows that complete.
  MVNROB_DEVICE int64_t outer_size(int known) const {
    return tensor() ? tensor_size(known) : int64_t(known) * kOuterRows<scalar_t>;
  }
  static MVNROB_DEVICE int64_t tensor_size(int known) {
    return sizeof(scalar_t) == 4 ? panel_size(known) : fragments::panel_size(known);
  }
  MVNROB_DEVICE bool tensor() const { return is_tensor<scalar_t>(a_, pivots_, s_.live); }
  MVNROB_DEVICE int outer_rows() const { return tensor() ? kPanelRows : kOuterRows<scalar_t>; }
  MVNROB_DEVICE int completion_unit() const {
    return rows_ == kInnerRows ? outer_rows() : kSmallRows;
  }
  MVNROB_DEVICE int padded_sampled() const { return int(round_up(sampled_, rows_)); }

  // Coefficient of y_l in sampled row r; zero from the row's own pivot on.
  MVNROB_DEVICE scalar_t coefficient(int r, int l) const {
    if (r >= sampled_ || l >= m_.pivot_of()[r]) return 0;
    const int i = m_.row_of()[r];
    return scalar_t(-entry(i, l) / entry(i, m_.pivot_of()[r]));
  }
  MVNROB_DEVICE double divisor(int r) const {
    return r < sampled_ ? entry(m_.row_of()[r], m_.pivot_of()[r]) : 1.0;
  }
  MVNROB_DEVICE double entry(int i, int l) const { return m_.factor()[int64_t(l) * size_ + i]; }

  MVNROB_DEVICE_FN void fill_sampled() {
    // Limits. Dividing by a negative coefficient exchanges them.
    for (int r = thread(); r < padded_sampled(); r += team_.size()) {
      ProgramRow<scalar_t> out{scalar_t(HUGE_VAL), scalar_t(-HUGE_VAL), 0};
      if (r < sampled_) {
        const int pivot = m_.pivot_of()[r];
        set_limits(out, m_.row_of()[r], entry(m_.row_of()[r], pivot));
        if (known_at(r + 1) > pivot) {
          out.flags |= kClosesPivot;
          for (int q = r; q >= 0 && m_.pivot_of()[q] == pivot; --q) {
            const int i = m_.row_of()[q];
            const double bound = entry(i, pivot) > 0 ? m_.lower()[i] : m_.upper()[i];
            if (bound > -HUGE_VAL && bound < HUGE_VAL) out.flags |= kBoundedBelow;
          }
        }
      }
      m_.program_rows()[r] = out;
    }
    const Program& p = s_.program;
    for (int o = 0; o < p.sampled_outer; ++o) {
      const OuterBlock outer = m_.outer()[o];
      const int first = o * outer_rows();
      if (tensor())
        fill_tensor(
            outer.coef, outer.known, [&](int r) { return divisor(first + r); },
            [&](int r, int l) { return coefficient(first + r, l); });
      else
        fill_panel(outer.coef, first, kOuterRows<scalar_t>, 0, outer.known);
    }
    for (int b = 0; b < p.sampled_blocks; ++b) {
      const ProgramBlock block = m_.blocks()[b];
      const int first = b * rows_;
      fill_panel(block.coef, first, rows_, block.base, block.known);
      scalar_t* triangle = m_.coef() + block.coef + int64_t(block.known - block.base) * rows_;
      for (int e = thread(); e < rows_ * rows_; e += team_.size()) {
        const int closing = e / rows_, r = closing + 1 + e % rows_;
        const bool within = first + closing < sampled_ && r < rows_;
        triangle[e] = within ? coefficient(first + r, m_.pivot_of()[first + closing]) : scalar_t(0);
      }
    }
  }

  MVNROB_DEVICE void fill_panel(int64_t coef, int first, int rows, int base, int known) {
    scalar_t* panel = m_.coef() + coef;
    for (int e = thread(); e < (known - base) * rows; e += team_.size())
      panel[e] = coefficient(first + e % rows, base + e / rows);
  }

  // A panel for the tensor sampler, by its rows' divisors and coefficients.
  template <class Divisor, class Coefficient>
  MVNROB_DEVICE void fill_tensor(int64_t coef, int known, const Divisor& divisor,
                                 const Coefficient& coefficient) {
    if constexpr (sizeof(scalar_t) == 4)
      fill_halves(coef, known, divisor, coefficient);
    else
      fill_fragments(coef, known, coefficient);
  }

  // As mvn_cdf_fragments.h has it.
  template <class Coefficient>
  MVNROB_DEVICE_FN void fill_fragments(int64_t coef, int known, const Coefficient& coefficient) {
    scalar_t* panel = m_.coef() + coef;
    for (int e = thread(); e < fragments::panel_size(known); e += team_.size()) {
      const int r = e % kPanelRows, l = e / kPanelRows;
      panel[fragments::panel_place(r, l)] = l < known ? scalar_t(coefficient(r, l)) : scalar_t(0);
    }
  }

  // As mvn_cdf_halves.h has it.
  template <class Divisor, class Coefficient>
  MVNROB_DEVICE_FN void fill_halves(int64_t coef, int known, const Divisor& divisor,
                                    const Coefficient& coefficient) {
    auto* panel = reinterpret_cast<float*>(m_.coef() + coef);
    auto* words = reinterpret_cast<uint32_t*>(panel + kPanelRows);
    for (int r = thread(); r < kPanelRows; r += team_.size())
      panel[r] = PanelScale(divisor(r)).inverse;
    for (int e = thread(); e < slabs_of(known) * (kSlab / 2) * kPanelRows; e += team_.size()) {
      const int r = e % kPanelRows, l = e / kPanelRows * 2;
      const float scale = PanelScale(divisor(r)).scale;
      uint32_t* word = words + panel_word(r, l / 2);
      split(l < known ? float(coefficient(r, l)) * scale : 0.0f,
            l + 1 < known ? float(coefficient(r, l + 1)) * scale : 0.0f, word[0], word[kLowWords]);
    }
  }

  // The live rows, in the order of the factor.
  MVNROB_DEVICE_FN void fill_completion() {
    const int unit = completion_unit(), padded = s_.program.completion_rows;
    ProgramRow<scalar_t>* rows = m_.program_rows() + padded_sampled();
    scalar_t* coefs = m_.coef() + s_.program.completion_coef;
    int placed = 0;
    for (int first = pivots_; first < size_; first += team_.size()) {
      const int i = first + thread();
      const bool live = i < size_ && m_.group()[i] < 0;
      int total = 0;
      const int r = placed + team_.rank(live, total);
      placed += total;
      if (!live) continue;
      m_.row_of()[sampled_ + r] = i;
      const double sd = ::sqrt(m_.variance()[i]);
      ProgramRow<scalar_t> out{scalar_t(HUGE_VAL), scalar_t(-HUGE_VAL), 0};
      set_limits(out, i, sd);
      rows[r] = out;
      if (tensor()) continue;
      scalar_t* panel = coefs + int64_t(r / unit) * unit * pivots_ + r % unit;
      for (int l = 0; l < pivots_; ++l) panel[int64_t(l) * unit] = scalar_t(-entry(i, l) / sd);
    }
    for (int r = placed + thread(); r < padded; r += team_.size()) {
      rows[r] = {scalar_t(HUGE_VAL), scalar_t(-HUGE_VAL), 0};
      if (tensor()) continue;
      scalar_t* panel = coefs + int64_t(r / unit) * unit * pivots_ + r % unit;
      for (int l = 0; l < pivots_; ++l) panel[int64_t(l) * unit] = 0;
    }
    if (tensor()) fill_completion_tensor();
  }

  MVNROB_DEVICE_FN void fill_completion_tensor() {
    team_.sync();
    const int32_t* live = m_.row_of() + sampled_;
    for (int first = 0; first < s_.live; first += kPanelRows) {
      const auto sd = [&](int r) {
        return first + r < s_.live ? ::sqrt(m_.variance()[live[first + r]]) : 1.0;
      };
      fill_tensor(s_.program.completion_coef + first / kPanelRows * tensor_size(pivots_), pivots_,
                  sd, [&](int r, int l) {
                    return first + r < s_.live ? -entry(live[first + r], l) / sd(r) : 0.0;
                  });
    }
  }

  MVNROB_DEVICE void set_limits(ProgramRow<scalar_t>& out, int i, double divisor) const {
    const double upper = (divisor > 0 ? m_.upper()[i] : m_.lower()[i]) / divisor;
    const double lower = (divisor > 0 ? m_.lower()[i] : m_.upper()[i]) / divisor;
    out.upper = scalar_t(upper);
    out.lower = scalar_t(lower);
    if (upper < HUGE_VAL) out.flags |= kHasUpper;
    if (lower > -HUGE_VAL) out.flags |= kHasLower;
  }

  static MVNROB_DEVICE int math_min(int a, int b) { return a < b ? a : b; }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_, sampled_, rows_;
};

}  // namespace mvnrob::kernels
