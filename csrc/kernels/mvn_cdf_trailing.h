// The entries of a large factor's columns to come, from which the columns made so far are
// subtracted a panel at a time (mvn_cdf_factor.h).
//
// They lie where the columns will, each as if its variable were the next pivot: [column][row], both
// halves, since a matrix that is symmetric only up to rounding is read by its pivots' rows. A new
// column then reads no more than its panel; the others' n^2 numbers are read and written once a
// panel, 64 multiply-adds each.
//
// Mapping: a block takes tiles of 128 x 128 entries, all of them or, in a grid, its share; a thread
// 8 x 8 of them, in registers. The panel's numbers come to shared memory by asynchronous copies, a
// slab of 8 columns multiplied and two under way; from there a thread takes 16 for 64
// multiply-adds. Limiter, by the sm_90 code: double precision multiply-adds, then memory.
#pragma once
#include "kernels/grid.h"
#include "kernels/mvn_cdf_data.h"

namespace mvnrob::kernels {

constexpr int kPanel = 64;  // columns

// Whether it pays to subtract the panel before pivot j, for `left` columns to come of a row of
// `size` variables: each of these saves 64 numbers of its rows; to subtract reads and writes a
// number, and costs as much again in arithmetic, for each of their squares.
MVNROB_HD bool pays_to_subtract(int size, int j, int left) { return left > (size - j) / 16; }

// What takes more registers than the code of other architectures has, which would spill.
#if defined(__CUDA_ARCH__)
constexpr bool kHasRegisters = __CUDA_ARCH__ == 900;
#else
constexpr bool kHasRegisters = true;
#endif

// The shared memory of a block of kGrowThreads that makes factors: so much for what else its kernel
// has there, then this, or what mvn_cdf_stretch.h lays over it. Smaller rows subtract no panels.
constexpr int kFactorReserve = 4096;
struct TrailingShared {
  static constexpr int kTile = 128, kSlab = 8, kStages = 3;
  alignas(16) double rows[kStages][kSlab][kTile], columns[kStages][kSlab][kTile];
};
MVNROB_DEVICE unsigned char* factor_shared() {
  return dynamic_shared<unsigned char>() + kFactorReserve;
}
// Bytes at least, and what is of use at most: all of a multiprocessor's. `own`: of what else the
// kernel has.
constexpr size_t least_factor_shared(int threads, size_t own) {
  return threads == kGrowThreads ? kFactorReserve + sizeof(TrailingShared) : own;
}
constexpr size_t most_factor_shared(int threads, size_t own) {
  return threads == kGrowThreads ? 227 * 1024 : own;
}

// Blocks for smaller rows have none.
template <class scalar_t, class Team, bool = Team::kThreads == kGrowThreads>
class TrailingEntries {
 public:
  MVNROB_DEVICE TrailingEntries(const MvnCdfArgs&, int64_t, const Team&, int) {}
  MVNROB_DEVICE void resume(int, int) {}
  MVNROB_DEVICE int subtracted() const { return 0; }
  MVNROB_DEVICE void advance(int, int) {}
  struct Entry {};
  MVNROB_DEVICE Entry look(int, int, int) const { return {}; }
  MVNROB_DEVICE double take(const Entry&, int, int, int) const { return 0; }
};

template <class scalar_t, class Team>
class TrailingEntries<scalar_t, Team, true> {
 public:
  MVNROB_DEVICE TrailingEntries(const MvnCdfArgs& a, int64_t row, const Team& team, int size)
      : a_(a), row_(row), team_(team), m_(a, row), size_(size) {}

  // Of how many columns an earlier call, which made `pivots` of them, has left these entries.
  // Where all rows are to be pivots as they stand, none above the diagonal is read again, nor made.
  MVNROB_DEVICE_FN void resume(int pivots, int subtracted) {
    subtracted_ = subtracted;
    if constexpr (!kHasRegisters) return;
    if (!a_.order || a_.columns_only || a_.n_order < size_) return;
    unsigned moves = 0;
    for (int i = pivots + team_.thread(); i < size_; i += team_.size())
      moves |= a_.order[row_ * a_.n_order + i] != m_.variable()[i];
    lower_only_ = team_.any_bits(moves) == 0;
  }

  // How many columns are subtracted; where none is the entries are not there, but in the input.
  MVNROB_DEVICE int subtracted() const { return subtracted_; }

  // Before pivot j: subtracts the columns before it if there is a panel of them and it pays, for
  // `left` columns to come.
  MVNROB_DEVICE_FN void advance(int j, int left) {
    if (a_.is_factor() || a_.columns_only || j - subtracted_ < kPanel) return;
    if (!pays_to_subtract(size_, j, left)) return;
    if (subtracted_ == 0) read(j);
    for (int t = first_of_block();; t += blocks()) {
      const int tiles = (int(anew(size_ - j)) + kTile - 1) / kTile;
      if (t >= tiles * tiles) break;
      if (lower_only_ && t % tiles < t / tiles) continue;
      subtract_from_tile(j, j + t % tiles * kTile, j + t / tiles * kTile);
    }
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
  using Shared = TrailingShared;
  static constexpr int kTile = Shared::kTile, kSlab = Shared::kSlab, kStages = Shared::kStages;
  static constexpr int kSide = 16, kEach = kTile / kSide;  // threads a side, entries of each

  static MVNROB_DEVICE int first_of_block() { return Team::kIsGrid ? int(blockIdx.x) : 0; }
  static MVNROB_DEVICE int blocks() { return Team::kIsGrid ? int(gridDim.x) : 1; }

  // What follows from it is computed tile by tile, like what is `anew` above: the entries want the
  // registers.
  MVNROB_DEVICE int own_thread() const { return int(anew(team_.block().thread())); }

  MVNROB_DEVICE double* column(int l) const { return m_.factor() + int64_t(l) * size_; }

  // The entries from row and column `first` on: a block takes columns, a thread rows of them.
  MVNROB_DEVICE_FN void read(int first) {
    constexpr int kRows = 4, kColumns = 4;  // whose loads are under way at once
    for (int i = first + team_.block().thread(); i < size_; i += kRows * Team::kThreads) {
      int32_t other[kRows];
      double own[kRows];
      MVNROB_UNROLL
      for (int k = 0; k < kRows; ++k) {
        const int at = i + k * Team::kThreads;
        other[k] = at < size_ ? m_.variable()[at] : -1;
        own[k] = at < size_ ? m_.inverse_sd()[at] : 0;
      }
      const int end = lower_only_ ? columns_before(i + kRows * Team::kThreads) : size_;
      MVNROB_ROLLED
      for (int c = first + first_of_block(); c < end; c += kColumns * blocks()) {
        double entry[kColumns][kRows], scale[kColumns];
        MVNROB_UNROLL
        for (int l = 0; l < kColumns; ++l) {
          // Beyond the last one that one again: nobody writes it.
          const int at = c + l * blocks() < size_ ? c + l * blocks() : size_ - 1;
          scale[l] = m_.inverse_sd()[at];
          a_.stored(row_, m_.variable()[at], other, entry[l]);
        }
        MVNROB_UNROLL
        for (int l = 0; l < kColumns; ++l) {
          if (c + l * blocks() >= size_) break;
          MVNROB_UNROLL
          for (int k = 0; k < kRows; ++k)
            if (other[k] >= 0)
              column(c + l * blocks())[i + k * Team::kThreads] = entry[l][k] * scale[l] * own[k];
        }
      }
    }
    team_.sync();
  }

  MVNROB_DEVICE int columns_before(int end) const { return end < size_ ? end : size_; }

  // The columns before `end` from one tile. A thread has rows i, i + 16, ... and columns one beside
  // the other; those beyond the last are zeros that nobody writes.
  MVNROB_DEVICE_FN void subtract_from_tile(int end, int first_row, int first_column) const {
    static_assert(Team::kThreads == kSide * kSide);
    const int thread = own_thread();
    const int row = thread % kSide, first = thread / kSide * kEach;
    const int slabs = (end - subtracted_ + kSlab - 1) / kSlab;
    const Shared& shared = *reinterpret_cast<const Shared*>(factor_shared());
    team_.block().sync();  // the tile before is done with the stages
    MVNROB_UNROLL
    for (int s = 0; s < kStages - 1; ++s) fetch(s, end, first_row, first_column);
    double entry[kEach][kEach];
    MVNROB_UNROLL
    for (int c = 0; c < kEach; ++c) {
      const int to = first_column + first + c;
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k) {
        const int i = first_row + row + kSide * k;
        entry[c][k] = to < size_ && i < size_ ? column(to)[i] : 0;
      }
    }
    MVNROB_ROLLED
    for (int s = 0; s < slabs; ++s) {
      copy_async_wait<kStages - 2>();
      team_.block().sync();
      fetch(s + kStages - 1, end, first_row, first_column);
      const auto& rows = shared.rows[s % kStages];
      const auto& columns = shared.columns[s % kStages];
      MVNROB_ROLLED
      for (int l = 0; l < kSlab; ++l) {
        double by_row[kEach], by_column[kEach];
        MVNROB_UNROLL
        for (int k = 0; k < kEach; ++k) by_row[k] = rows[l][row + kSide * k];
        MVNROB_UNROLL
        for (int c = 0; c < kEach; ++c) by_column[c] = columns[l][first + c];
        MVNROB_UNROLL
        for (int c = 0; c < kEach; ++c) {
          MVNROB_UNROLL
          for (int k = 0; k < kEach; ++k)
            entry[c][k] = ::fma(-by_row[k], by_column[c], entry[c][k]);
        }
      }
    }
    MVNROB_UNROLL
    for (int c = 0; c < kEach; ++c) {
      const int to = first_column + first + c;
      MVNROB_UNROLL
      for (int k = 0; k < kEach; ++k) {
        const int i = first_row + row + kSide * k;
        if (to < size_ && i < size_) column(to)[i] = entry[c][k];
      }
    }
  }

  // Starts the copies of one slab of the columns subtracted_ .. end - 1, where there is one, with
  // zeros for columns and rows that are not there; a group in any case.
  MVNROB_DEVICE void fetch(int slab, int end, int first_row, int first_column) const {
    constexpr int kAtOnce = Team::kThreads / kTile;  // columns
    if (subtracted_ + slab * kSlab < end) {
      Shared& shared = *reinterpret_cast<Shared*>(factor_shared());
      const int thread = own_thread(), at = thread % kTile;
      const int row = first_row + at, column_at = first_column + at;
      MVNROB_UNROLL
      for (int m = 0; m < kSlab / kAtOnce; ++m) {
        const int k = m * kAtOnce + thread / kTile, l = subtracted_ + slab * kSlab + k;
        const double* const from = column(l);
        const bool of_row = l < end && row < size_, of_column = l < end && column_at < size_;
        copy_async8(&shared.rows[slab % kStages][k][at], of_row ? from + row : from, of_row);
        copy_async8(&shared.columns[slab % kStages][k][at], of_column ? from + column_at : from,
                    of_column);
      }
    }
    copy_async_commit();
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  const RowMemory<scalar_t> m_;
  const int size_;
  int subtracted_ = 0;
  bool lower_only_ = false;
};

}  // namespace mvnrob::kernels
