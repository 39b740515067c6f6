// The entries of a large factor's columns to come, from which the columns made so far are
// subtracted a panel at a time (mvn_cdf_factor.h).
//
// They lie where the columns will, each as if its variable were the next pivot: [column][row], both
// halves, since a matrix that is symmetric only up to rounding is read by its pivots' rows. A new
// column then reads no more than its panel; the others' n^2 numbers are read and written once a
// panel, 64 multiply-adds each.
//
// Mapping: a block takes tiles of 128 x 128 entries, all of them or, in a grid, its share; a thread
// 8 x 8 of them, in registers; the panel's numbers come through the L1 cache, 16 loads for 64
// multiply-adds. Limiter: double precision multiply-adds, then memory.
#pragma once
#include "kernels/grid.h"
#include "kernels/mvn_cdf_data.h"

namespace mvnrob::kernels {

constexpr int kPanel = 64;  // columns

// Whether it pays to subtract the panel before pivot j, for `left` columns to come of a row of
// `size` variables: each of these saves 64 numbers of its rows; to subtract reads and writes a
// number, and costs as much again in arithmetic, for each of their squares.
MVNROB_HD bool pays_to_subtract(int size, int j, int left) { return left > (size - j) / 16; }

// Blocks for smaller rows have none.
template <class scalar_t, class Team, bool = Team::kThreads == kGrowThreads>
class TrailingEntries {
 public:
  MVNROB_DEVICE TrailingEntries(const MvnCdfArgs&, int64_t, const Team&, const RowMemory<scalar_t>&,
                                int) {}
  MVNROB_DEVICE void resume(int) {}
  MVNROB_DEVICE int subtracted() const { return 0; }
  MVNROB_DEVICE void advance(int, int) {}
  struct Entry {};
  MVNROB_DEVICE Entry look(int, int, int) const { return {}; }
  MVNROB_DEVICE double take(const Entry&, int, int, int) const { return 0; }
};

template <class scalar_t, class Team>
class TrailingEntries<scalar_t, Team, true> {
 public:
  MVNROB_DEVICE TrailingEntries(const MvnCdfArgs& a, int64_t row, const Team& team,
                                const RowMemory<scalar_t>& m, int size)
      : a_(a), row_(row), team_(team), m_(m), size_(size) {}

  // Of how many columns an earlier call has left these entries.
  MVNROB_DEVICE void resume(int subtracted) { subtracted_ = subtracted; }

  // How many columns are subtracted; where none is the entries are not there, but in the input.
  MVNROB_DEVICE int subtracted() const { return subtracted_; }

  // Before pivot j: subtracts the columns before it if there is a panel of them and it pays, for
  // `left` columns to come.
  MVNROB_DEVICE_FN void advance(int j, int left) {
    if (a_.is_factor() || a_.columns_only || j - subtracted_ < kPanel) return;
    if (!pays_to_subtract(size_, j, left)) return;
    if (subtracted_ == 0) read(j);
    const int tiles = (size_ - j + kTile - 1) / kTile;
    for (int t = first_of_block(); t < tiles * tiles; t += blocks())
      subtract_from_tile(j, j + t % tiles * kTile, j + t / tiles * kTile);
    subtracted_ = j;
    team_.sync();
  }

  // Of the next pivot's column, now j, row i; one thread for each i. The pivot was row `from`,
  // which row j has become: so do the entries. look() reads, of several rows at once, and then
  // take() writes and returns the entry.
  struct Entry {
    double wanted, first, own;
  };
  MVNROB_DEVICE Entry look(int i, int j, int from) const {
    if (from == j) return {column(j)[i], 0, 0};
    const double* const taken = column(from);
    if (i == from) return {taken[j], 0, 0};
    return {taken[i], column(j)[i], column(i)[j]};
  }
  MVNROB_DEVICE double take(const Entry& entry, int i, int j, int from) const {
    if (from != j && i != from) {
      column(from)[i] = entry.first;
      column(i)[from] = entry.own;
    }
    return entry.wanted;
  }

 private:
  static constexpr int kTile = 128, kSide = 16, kEach = kTile / kSide;

  static MVNROB_DEVICE int first_of_block() { return Team::kIsGrid ? int(blockIdx.x) : 0; }
  static MVNROB_DEVICE int blocks() { return Team::kIsGrid ? int(gridDim.x) : 1; }

  MVNROB_DEVICE double* column(int l) const { return m_.factor() + int64_t(l) * size_; }

  // The entries from row and column `first` on: a block takes a column.
  MVNROB_DEVICE_FN void read(int first) {
    constexpr int kAhead = 4;  // rows whose loads are under way at once
    for (int c = first + first_of_block(); c < size_; c += blocks()) {
      const int32_t variable = m_.variable()[c];
      const double scale = m_.inverse_sd()[c];
      for (int i = first + team_.block().thread(); i < size_; i += kAhead * Team::kThreads) {
        int32_t other[kAhead];
        double entry[kAhead], own[kAhead];
        MVNROB_UNROLL
        for (int k = 0; k < kAhead; ++k) {
          const int at = i + k * Team::kThreads;
          other[k] = at < size_ ? m_.variable()[at] : -1;
          own[k] = at < size_ ? m_.inverse_sd()[at] : 0;
        }
        a_.stored(row_, variable, other, entry);
        MVNROB_UNROLL
        for (int k = 0; k < kAhead; ++k)
          if (other[k] >= 0) column(c)[i + k * Team::kThreads] = entry[k] * scale * own[k];
      }
    }
    team_.sync();
  }

  // The columns before `end`. Where a tile reaches beyond the last row or column, a thread takes
  // its columns one by one.
  MVNROB_DEVICE_FN void subtract_from_tile(int end, int first_row, int first_column) const {
    static_assert(Team::kThreads == kSide * kSide);
    const int thread = team_.block().thread();
    const int i = first_row + thread % kSide, to = first_column + thread / kSide;
    if (first_row + kTile <= size_ && first_column + kTile <= size_) {
      subtract<true, kEach>(end, i, to);
    } else {
      for (int k = 0; k < kEach; ++k)
        if (to + kSide * k < size_) subtract<false, 1>(end, i, to + kSide * k);
    }
  }

  // From a thread's entries: rows i, i + 16, ... of columns `to`, to + 16, ...
  template <bool whole, int columns>
  MVNROB_DEVICE_FN void subtract(int end, int i, int to) const {
    double entry[columns][kEach];
    MVNROB_UNROLL
    for (int c = 0; c < columns; ++c) {
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k)
        entry[c][k] = whole || i + kSide * k < size_ ? column(to + kSide * c)[i + kSide * k] : 0;
    }
    // Of a column of the panel: loaded while the products of the one before are taken.
    double by_row[kEach], by_column[columns];
    const double* from = column(subtracted_);
    const auto load = [&] {
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k)
        by_row[k] = whole || i + kSide * k < size_ ? from[i + kSide * k] : 0;
      MVNROB_UNROLL
      for (int c = 0; c < columns; ++c) by_column[c] = from[to + kSide * c];
      from += size_;
    };
    load();
    MVNROB_ROLLED
    for (int l = subtracted_; l < end; ++l) {
      double this_row[kEach], this_column[columns];
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k) this_row[k] = by_row[k];
      MVNROB_UNROLL
      for (int c = 0; c < columns; ++c) this_column[c] = by_column[c];
      if (l + 1 < end) load();
      MVNROB_UNROLL
      for (int c = 0; c < columns; ++c) {
        MVNROB_UNROLL
        for (int k = 0; k < kEach; ++k)
          entry[c][k] = ::fma(-this_row[k], this_column[c], entry[c][k]);
      }
    }
    MVNROB_UNROLL
    for (int c = 0; c < columns; ++c) {
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k)
        if (whole || i + kSide * k < size_) column(to + kSide * c)[i + kSide * k] = entry[c][k];
    }
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  const RowMemory<scalar_t>& m_;
  const int size_;
  int subtracted_ = 0;
};

}  // namespace mvnrob::kernels
