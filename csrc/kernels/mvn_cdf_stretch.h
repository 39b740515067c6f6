// A stretch of a large factor's columns, made by one block (mvn_cdf_factor.h): as many as its
// shared memory holds.
//
// Meanwhile nothing changes places. A thread keeps up to five rows in registers, the stretch's
// columns and those before them that there is room for lie in shared memory; a pivot's row stays
// where it is, and only the order in which rows would have been exchanged is noted. What a row's
// new entry makes of it says at once how good a pivot it would be: each warp tells its best row,
// with all that the others need of it, before a barrier. The last warp has no rows: it finds the
// pivot's mean, a long chain of operations, while the others make its column, and a second barrier
// passes it on. At the end of the stretch all rows move where the exchanges would have taken them,
// in one go: many independent loads in place of a few after every pivot.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_trailing.h"
#include "plan/ordering.h"

namespace mvnrob::kernels {

enum FactorFinding : unsigned { kExhausts = 1, kNegative = 2, kNotANumber = 4, kSomeLive = 8 };

MVNROB_DEVICE_ONCE double mean_of_pivot(double lower, double upper) {
  return plan::truncated_mean(lower, upper);
}

// The best pivot among a warp's rows, and what its rows have found.
struct PivotOffer {
  double key;
  uint32_t packed;  // its variable and its place, kNoPivot where there is none
  unsigned found;
  double variance, mean, upper, lower, variance_error, inverse_sd;
};

// Laid over TrailingShared; the numbers of columns follow it.
struct alignas(16) StretchShared {
  static constexpr int kWarps = kGrowThreads / kWarp - 1;  // that have rows
  static constexpr int kMostRows = 1024, kMostColumns = kPanel;
  PivotOffer offer[2][kWarps];
  double mean;  // of the pivot
  unsigned moves;
  uint16_t from[kMostRows];          // the row, by places, that stands at each place
  uint16_t place[kMostRows];         // and the other way round
  uint16_t moved[2 * kMostColumns];  // places where another row stands
  MVNROB_DEVICE double* columns() { return reinterpret_cast<double*>(this + 1); }
};

// What a stretch has come to.
struct Stretch {
  int columns;     // made
  int retired;     // rows that have joined a group
  double largest;  // variance among those
  Status failure;  // `converged` where there is none
  bool ends;       // the forced order wants no more
};

template <class scalar_t, class Team>
class StretchMaker {
 public:
  MVNROB_DEVICE StretchMaker(const MvnCdfArgs& a, int64_t row, const Team& team, const RowState& s,
                             int size, int subtracted)
      : a_(a), row_(row), team_(team), s_(s), m_(a, row), size_(size), subtracted_(subtracted) {}

  // Whether a block can make columns from `begin` on so.
  MVNROB_DEVICE bool fits(int begin) const {
    return !a_.is_factor() && size_ - begin <= StretchShared::kMostRows && room(size_ - begin) > 0;
  }

  // Makes columns from `begin` on, at most `left` of them.
  MVNROB_DEVICE_FN Stretch make(int begin, int left) {
    const int rows = size_ - begin, old = begin - subtracted_;
    int most = old < kPanel ? kPanel - old : kPanel;
    if (most > left) most = left;
    const int room_for = room(rows);
    if (most > room_for) most = room_for;
    const int kept = old < room_for - most ? old : room_for - most;
    static_assert(StretchShared::kMostRows <= 5 * kOwners);
    if (rows <= 2 * kOwners) return make_of<2>(begin, most, kept);
    return make_of<5>(begin, most, kept);
  }

 private:
  static constexpr int kWarps = StretchShared::kWarps, kOwners = kWarps * kWarp;  // of rows
  static constexpr uint32_t kNoPivot = UINT32_MAX;
  static constexpr int kPlaceBits = 10;
  static_assert(StretchShared::kMostRows <= 1 << kPlaceBits);

  // What follows from it is computed where it is used: rows and entries want the registers.
  MVNROB_DEVICE int thread() const { return anew(team_.thread()); }
  static MVNROB_DEVICE StretchShared& shared() {
    return *reinterpret_cast<StretchShared*>(factor_shared());
  }
  MVNROB_DEVICE double* column(int l) const { return m_.factor() + int64_t(l) * size_; }

  // Columns of so many rows that shared memory holds.
  MVNROB_DEVICE int room(int rows) const {
    constexpr int kOthers = kFactorReserve + int(sizeof(StretchShared));
    return (a_.factor_shared - kOthers) / int(sizeof(double)) / rows;
  }

  // A thread's rows, by places from the stretch's first row on: thread, thread + kOwners, ...
  template <int rows>
  struct Rows {
    double upper[rows], lower[rows], mean[rows], variance[rows], error[rows], inverse_sd[rows];
    int32_t variable[rows], group[rows];
    unsigned follows, live;  // a bit for each: no pivot yet; and may become one
  };

  template <int count>
  MVNROB_DEVICE_FN Stretch make_of(int begin, int most, int kept) {
    const int rows = size_ - begin, thread = this->thread();
    StretchShared& shared = StretchMaker::shared();
    double* const columns = shared.columns();
    Rows<count> r;
    read_rows(begin, r);
    for (int x = thread; x < rows; x += Team::kThreads) shared.from[x] = shared.place[x] = x;
    for (int l = 0; l < kept; ++l)
      for (int x = thread; x < rows; x += Team::kThreads)
        columns[l * rows + x] = column(begin - kept + l)[begin + x];
    Stretch made{0, 0, 0, Status::converged, false};
    int64_t wanted = wanted_at(begin, 0, most);
    if (thread < kOwners) offer_pivot(r, wanted, 0, shared.offer[0]);
    for (int s = 0;; ++s) {
      const int64_t next = wanted_at(begin, s + 1, most);
      team_.sync();
      const PivotOffer* offers = shared.offer[s & 1];
      double best = HUGE_VAL;
      uint32_t packed = kNoPivot;
      unsigned found = 0;
      int warp = 0;
      MVNROB_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        const double key = offers[w].key;
        const uint32_t other = offers[w].packed;
        found |= offers[w].found;
        if (key < best || (key == best && other < packed)) best = key, packed = other, warp = w;
      }
      if (found & (kNegative | kNotANumber)) {
        made.failure = found & kNotANumber ? Status::nan : Status::indefinite;
        break;
      }
      made.columns = s;
      if (s == most || !(found & kSomeLive)) break;
      if (wanted < -1) {
        made.ends = true;
        break;
      }
      if (packed == kNoPivot) {  // forced, but it has no variance left
        made.failure = Status::nan;
        break;
      }
      const int place = int(packed & ((1u << kPlaceBits) - 1));
      const PivotOffer& pivot = offers[warp];
      wanted = next;
      double c[count];
      found = 0;
      if (thread < kOwners) {
        found = add_column(begin, kept, s, place, int32_t(packed >> kPlaceBits), pivot, r, c);
      } else {
        const double inverse = 1 / ::sqrt(pivot.variance);
        const double mean = mean_of_pivot((pivot.lower - pivot.mean) * inverse,
                                          (pivot.upper - pivot.mean) * inverse);
        if (thread == kOwners) {
          shared.mean = mean;
          exchange(shared, s, place);
        }
      }
      team_.sync();
      if (thread >= kOwners) continue;
      const double mean = shared.mean;
      MVNROB_UNROLL
      for (int k = 0; k < count; ++k) {
        if (!(r.follows >> k & 1)) continue;
        r.mean[k] = r.mean[k] + c[k] * mean;
        if (!(r.live >> k & 1) || !plan::is_zero_variance(r.variance[k], r.error[k])) continue;
        r.live &= ~(1u << k);
        r.group[k] = begin + s;
        made.largest = math::max(r.variance[k], made.largest);
        ++made.retired;
      }
      offer_pivot(r, wanted, found, shared.offer[(s + 1) & 1]);
    }
    if (thread == 0) shared.moves = 0;
    made.largest = team_.max(made.largest);
    made.retired = team_.sum(made.retired);
    // A row that is no covariance is read again, if at all.
    if (made.failure == Status::converged) put_back(begin, kept, made.columns, r);
    team_.sync();
    return made;
  }

  MVNROB_DEVICE int64_t wanted_at(int begin, int s, int most) const {
    return a_.order && s < most ? a_.order[row_ * a_.n_order + begin + s] : -1;
  }

  template <int count>
  MVNROB_DEVICE void read_rows(int begin, Rows<count>& r) const {
    r.follows = r.live = 0;
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      const int i = begin + this->thread() + k * kOwners;
      const bool here = this->thread() < kOwners && i < size_;
      r.variable[k] = here ? m_.variable()[i] : -1;
      r.upper[k] = here ? m_.upper()[i] : 0;
      r.mean[k] = here ? m_.mean()[i] : 0;
      r.variance[k] = here ? m_.variance()[i] : 1;
      r.error[k] = here ? m_.variance_error()[i] : 0;
      if (here) r.follows |= 1u << k;
      r.group[k] = here ? m_.group()[i] : 0;
      r.lower[k] = here ? m_.lower()[i] : 0;
      r.inverse_sd[k] = here ? m_.inverse_sd()[i] : 0;
      if (here && r.group[k] < 0) r.live |= 1u << k;
    }
  }

  // Tells this warp's best row: that of the variable least likely to hold, of equals the first in
  // the input, or where one is wanted that one.
  template <int count>
  MVNROB_DEVICE void offer_pivot(const Rows<count>& r, int64_t wanted, unsigned found,
                                 PivotOffer* offers) const {
    unsigned left = 0;  // rows to look at
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      if (!(r.live >> k & 1)) continue;
      found |= kSomeLive;
      if (wanted < 0 || r.variable[k] == wanted) left |= 1u << k;
    }
    if (wanted < 0 && !s_.rectangular) left &= near_least(r);
    double key = HUGE_VAL;
    uint32_t best = kNoPivot;
    while (__any_sync(kFullWarp, left != 0)) {
      double upper = 0, lower = 0, mean = 0, variance = 1;
      uint32_t packed = kNoPivot;
      MVNROB_UNROLL
      for (int k = count - 1; k >= 0; --k) {
        if (!(left >> k & 1)) continue;
        upper = r.upper[k], lower = r.lower[k], mean = r.mean[k], variance = r.variance[k];
        packed = packed_of(r, k);
      }
      double x = wanted < 0 ? plan::priority(upper, lower, mean, variance, s_.rectangular) : 0.0;
      x = x == x ? x : HUGE_VAL;
      if (left != 0 && (x < key || (x == key && packed < best))) key = x, best = packed;
      left &= left - 1;
    }
    const unsigned lanes = __ballot_sync(kFullWarp, best != kNoPivot);
    if ((lanes & (lanes - 1)) == 0) {  // one or none
      const int lane = lanes == 0 ? 0 : __ffs(int(lanes)) - 1;
      key = __shfl_sync(kFullWarp, key, lane);
      best = __shfl_sync(kFullWarp, best, lane);
    } else {
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const double other_key = __shfl_xor_sync(kFullWarp, key, offset);
        const uint32_t other = __shfl_xor_sync(kFullWarp, best, offset);
        if (other_key < key || (other_key == key && other < best)) key = other_key, best = other;
      }
    }
    const bool some_live = __any_sync(kFullWarp, (found & kSomeLive) != 0);
    if (__any_sync(kFullWarp, (found & ~kSomeLive) != 0)) found = warp_any_bits(found);
    if (some_live) found |= kSomeLive;
    PivotOffer& own = offers[this->thread() / kWarp];
    if (this->thread() % kWarp == 0) {
      own.key = key;
      own.packed = best;
      own.found = found;
    }
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      if (!(r.live >> k & 1) || packed_of(r, k) != best) continue;
      own.variance = r.variance[k];
      own.mean = r.mean[k];
      own.upper = r.upper[k];
      own.lower = r.lower[k];
      own.inverse_sd = r.inverse_sd[k];
      own.variance_error = r.error[k];
    }
  }

  // Those of a thread's rows, without lower limits, that may be the warp's best one: by their
  // priorities in float32, whose rounding is less than a part in a million. All that overflow are
  // among them, and NaNs, which count as infinite.
  template <int count>
  MVNROB_DEVICE unsigned near_least(const Rows<count>& r) const {
    float about[count], least = HUGE_VALF;
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      about[k] = float(r.upper[k] - r.mean[k]) * inverse_root(float(r.variance[k]));
      if (!((r.live >> k & 1) && about[k] == about[k])) about[k] = HUGE_VALF;
      least = about[k] < least ? about[k] : least;
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, least, offset);
      least = other < least ? other : least;
    }
    const float bound = least == -HUGE_VALF ? least : least + 4e-6f * ::fabsf(least) + 1e-30f;
    unsigned near = 0;
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k)
      if (about[k] <= bound) near |= 1u << k;
    return near;
  }
  static MVNROB_DEVICE float inverse_root(float x) {
#if defined(__CUDACC__)
    return ::rsqrtf(x);
#else
    return 1 / ::sqrtf(x);
#endif
  }

  // Variable before place: no two rows have the same.
  template <int count>
  MVNROB_DEVICE uint32_t packed_of(const Rows<count>& r, int k) const {
    return uint32_t(r.variable[k]) << kPlaceBits | uint32_t(this->thread() + k * kOwners);
  }

  // The stretch's column `s`, of the row at `place`, and what it does to the variances of others.
  template <int count>
  MVNROB_DEVICE unsigned add_column(int begin, int kept, int s, int place, int32_t variable,
                                    const PivotOffer& pivot, Rows<count>& r,
                                    double (&c)[count]) const {
    const int rows = size_ - begin, thread = this->thread();
    first_entries(begin + place, variable, begin, r, c);
    const double d = ::sqrt(pivot.variance), inverse = 1 / d;
    const double scale = pivot.inverse_sd, growth = pivot.variance_error / (d * d);
    if (subtracted_ == 0) {
      MVNROB_UNROLL
      for (int k = 0; k < count; ++k) c[k] = c[k] * scale * r.inverse_sd[k];
    }
    subtract_products(begin, begin - kept, kept + s, place, c);
    double* const to = shared().columns() + (kept + s) * rows;
    unsigned found = 0;
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      const int x = thread + k * kOwners;
      if (x == place) {
        to[x] = d;
        r.follows &= ~(1u << k);
        r.live &= ~(1u << k);
      }
      if (!(r.follows >> k & 1)) continue;
      c[k] *= inverse;
      to[x] = c[k];
      r.variance[k] -= c[k] * c[k];
      r.error[k] += c[k] * c[k] * growth;
      // A row that has left is followed on: its variance turns negative where it contradicts a
      // later pivot.
      if (!plan::is_valid_variance(r.variance[k], r.error[k]))
        found |= r.variance[k] != r.variance[k] ? kNotANumber : kNegative;
    }
    return found;
  }

  // The covariances of a thread's rows with the pivot, row i of the factor, as stored; or what the
  // panels subtracted so far leave of the correlations.
  template <int count>
  MVNROB_DEVICE void first_entries(int i, int32_t variable, int begin, const Rows<count>& r,
                                   double (&c)[count]) const {
    if (subtracted_ == 0) {
      a_.stored(row_, variable, r.variable, c);
      return;
    }
    const double* entries = column(i) + begin;
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      const int x = this->thread() + k * kOwners;
      c[k] = begin + x < size_ ? entries[x] : 0;
    }
  }

  // The products with columns subtracted_ .. end - 1, for which shared memory has no room, and with
  // `shared` of those in it.
  template <int count>
  MVNROB_DEVICE void subtract_products(int begin, int end, int shared, int place,
                                       double (&c)[count]) const {
    const int rows = size_ - begin;
    int at[count];  // beyond the last row that one again: nobody wants it
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      const int x = thread() + k * kOwners;
      at[k] = x < rows ? x : rows - 1;
    }
    constexpr int kAhead = count > 2 ? 3 : 6;  // columns whose loads are under way at once
    const double* column = this->column(subtracted_) + begin;
    int left = end - subtracted_;
    MVNROB_ROLLED
    for (; left >= kAhead; left -= kAhead, column += int64_t(kAhead) * size_)
      subtract_columns<kAhead, false>(column, size_, kAhead, at, place, c);
    if (left > 0) subtract_columns<kAhead, true>(column, size_, left, at, place, c);
    column = StretchMaker::shared().columns();
    left = shared;
    MVNROB_ROLLED
    for (; left >= kAhead; left -= kAhead, column += kAhead * rows)
      subtract_columns<kAhead, false>(column, rows, kAhead, at, place, c);
    if (left > 0) subtract_columns<kAhead, true>(column, rows, left, at, place, c);
  }

  // Of kAhead columns, or the first `left` of them and zeros.
  template <int kAhead, bool checked, int count>
  static MVNROB_DEVICE void subtract_columns(const double* columns, int stride, int left,
                                             const int (&at)[count], int place,
                                             double (&c)[count]) {
    double own[kAhead][count], pivots[kAhead];
    MVNROB_UNROLL
    for (int m = 0; m < kAhead; ++m) {
      const bool there = !checked || m < left;
      const double* column = columns + int64_t(m) * stride;
      pivots[m] = there ? column[place] : 0;
      MVNROB_UNROLL
      for (int k = 0; k < count; ++k) own[m][k] = there ? column[at[k]] : 0;
    }
    MVNROB_UNROLL
    for (int m = 0; m < kAhead; ++m) {
      MVNROB_UNROLL
      for (int k = 0; k < count; ++k) c[k] = ::fma(-own[m][k], pivots[m], c[k]);
    }
  }

  // One thread: the row at `place` changes places with the one that stands where pivot `s` belongs.
  static MVNROB_DEVICE void exchange(StretchShared& shared, int s, int place) {
    const uint16_t other = shared.from[s], stands = shared.place[place];
    shared.from[stands] = other;
    shared.place[other] = stands;
    shared.from[s] = uint16_t(place);
    shared.place[place] = uint16_t(s);
  }

  // All rows go where the exchanges take them, with their part of all columns.
  template <int count>
  MVNROB_DEVICE_FN void put_back(int begin, int kept, int made, const Rows<count>& r) const {
    const int rows = size_ - begin, thread = this->thread();
    StretchShared& shared = StretchMaker::shared();
    // Of the order of this list nothing depends.
    for (int x = thread; x < rows; x += Team::kThreads)
      if (shared.from[x] != x) shared.moved[atomicAdd(&shared.moves, 1u)] = uint16_t(x);
    team_.sync();
    const int moves = int(shared.moves);
    if (moves > 0) {
      for (int l = thread / kWarp * kColumns; l < begin; l += kAllWarps * kColumns)
        move_rows(shared, moves, begin, l, begin, 0);
      if (subtracted_ > 0) move_entries(shared, moves, begin, made);
      team_.sync();
    }
    int place[count];
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      const int x = thread + k * kOwners;
      place[k] = thread < kOwners && x < rows ? shared.place[x] : -1;
    }
    const double* columns = shared.columns() + kept * rows;
    for (int s = 0; s < made; ++s, columns += rows) {
      MVNROB_UNROLL
      for (int k = 0; k < count; ++k)
        if (place[k] >= s) column(begin + s)[begin + place[k]] = columns[thread + k * kOwners];
    }
    MVNROB_UNROLL
    for (int k = 0; k < count; ++k) {
      if (place[k] < 0) continue;
      const int i = begin + place[k];
      m_.mean()[i] = r.mean[k];
      m_.variance()[i] = r.variance[k];
      m_.variance_error()[i] = r.error[k];
      m_.group()[i] = r.group[k];
      m_.variable()[i] = r.variable[k];
      m_.upper()[i] = r.upper[k];
      m_.lower()[i] = r.lower[k];
      m_.inverse_sd()[i] = r.inverse_sd[k];
    }
  }

  // Of columns l .. before `end`, kColumns at most, by a warp: what moves to places from `least`
  // on.
  static constexpr int kColumns = 4, kAllWarps = Team::kThreads / kWarp;
  MVNROB_DEVICE void move_rows(const StretchShared& shared, int moves, int begin, int l, int end,
                               int least) const {
    constexpr int kEach = 2 * StretchShared::kMostColumns / kWarp;
    const int lane = this->thread() % kWarp;
    double x[kEach][kColumns];
    MVNROB_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const int at = e * kWarp + lane;
      const int from = at < moves ? shared.from[shared.moved[at]] : 0;
      MVNROB_UNROLL
      for (int k = 0; k < kColumns; ++k)
        x[e][k] = at < moves && l + k < end ? column(l + k)[begin + from] : 0;
    }
    __syncwarp();  // all have read
    MVNROB_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const int at = e * kWarp + lane;
      const int to = at < moves ? shared.moved[at] : -1;
      MVNROB_UNROLL
      for (int k = 0; k < kColumns; ++k)
        if (to >= least && l + k < end) column(l + k)[begin + to] = x[e][k];
    }
  }

  // The entries to come, rows and columns. What moves comes from rows and columns that are no
  // longer among them, so that nobody reads what another writes.
  MVNROB_DEVICE void move_entries(const StretchShared& shared, int moves, int begin,
                                  int made) const {
    const int thread = this->thread(), first = begin + made;
    for (int l = first + thread / kWarp * kColumns; l < size_; l += kAllWarps * kColumns) {
      const int end = l + kColumns < size_ ? l + kColumns : size_;
      move_rows(shared, moves, begin, l, end, made);
    }
    team_.sync();  // or else rows of the columns that follow, whole
    for (int m = 0; m < moves; ++m) {
      const int to = shared.moved[m], from = shared.from[to];
      if (to < made) continue;
      for (int i = first + thread; i < size_; i += Team::kThreads)
        column(begin + to)[i] = column(begin + from)[begin + shared.from[i - begin]];
    }
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  const RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_, subtracted_;
};

}  // namespace mvnrob::kernels
