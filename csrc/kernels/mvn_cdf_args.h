// Arguments of mvn_cdf's kernels. No device code: the torch side includes this too.
#pragma once
#include <cstdint>

#include "math/config.h"
#include "plan/confidence.h"
#include "plan/estimate.h"
#include "plan/options.h"

namespace mvnrob::kernels {

// Byte offsets within a row's memory.
struct RowLayout {
  int64_t state, variable, group, inverse_sd, upper, lower, variance, mean, variance_error, scratch,
      factor, program_rows, row_of, pivot_of, blocks, outer, coef, shifts, totals, slots,
      event_mass, event_share, tilt, directions, reference, rest, alike, merged_upper, merged_lower;
  int64_t bytes;
  int32_t max_chunks;  // slots are [kShifts][max_chunks]
};

struct CovarianceStrides {
  int64_t batch, row, column;
};

// One unit of work list: the items base.. of a row, until the next entry's base.
struct WorkEntry {
  uint64_t base;
  int64_t row;
};

// Reset before every tile; one for each round.
struct RoundCounters {
  unsigned long long small, blocked, tensor, united;                      // entries << 40 | items
  unsigned long long small_next, blocked_next, tensor_next, united_next;  // items handed out
  unsigned active, closed, factored, grown;                               // rows
  unsigned planned;  // blocks of a graph's plan that have ended
};

constexpr int kItemBits = 40;
MVNROB_HD uint64_t items_of(uint64_t packed) { return packed & ((uint64_t(1) << kItemBits) - 1); }
MVNROB_HD int64_t entries_of(uint64_t packed) { return int64_t(packed >> kItemBits); }

// From how many numbers on that a new column of a factor would read without panels the whole grid
// makes it, for each row that is planned at the time: about from 1,500 variables on. A grid spends
// some 20 us on a pivot (H100), a block about as much at a thousand.
constexpr int64_t kGrowFrom = 400'000;

// Arguments of every kernel, by value.
struct MvnCdfArgs {
  // The tile's part of the input; limits contiguous [rows, n].
  int64_t rows;
  int32_t n;
  bool is_double;
  const void* upper;
  const void* lower;  // null: minus infinity
  const void* cov;
  CovarianceStrides cov_strides;  // in elements
  int32_t factor_columns;         // cov is a factor [n, factor_columns]; -1: it is not
  const int64_t* seed;
  // and of the output, [rows] each
  void* prob;
  void* complement;
  void* error;
  void* log_prob;
  void* log_error;
  int64_t* status;
  int64_t* n_points;
  int64_t* n_active;
  int64_t* n_pivots;

  RowOptions options;
  plan::Quantiles quantiles;

  // Forced plan (mvn_cdf_sums): the pivots in order, points of each shift, sums out [rows, 8, 5].
  // In mvn_cdf_pathwise -1 stands for the next in greedy order, and -2 for no more of them.
  const int64_t* order;  // [rows, n_order]; null: not forced
  int32_t n_order;
  // In mvn_cdf_pathwise, [rows, n_order]: the tilt of the pivots, or where the first number is NaN
  // that of the saddle point; null: samples are plain.
  const double* tilt;
  int64_t forced_points;
  SampleSums* forced_sums;
  bool scalar_panels;         // of any number of pivots, for mvn_cdf_pathwise
  bool columns_only = false;  // a row's memory has no more columns of its factor than are wanted
  // Of the device: from how many pivots on float32 samples take their products from the tensor
  // cores (mvn_cdf_data.h), and whether it has float64 ones worth the name (tensor.h).
  int32_t tensor_pivots;
  bool double_tensor;
  // Bytes of a planning block's shared memory, which the launches set where it is 0. Negative: they
  // are for no columns (mvn_cdf_stretch.h).
  int32_t factor_shared = 0;

  RowLayout layout;
  unsigned char* memory;  // rows * layout.bytes
  uint32_t* generators;   // [n + 1][words_of(options.points)]
  void* history;          // of a sampler's blocks, one piece for each
  int64_t blocked_history, tensor_history, union_history;  // bytes of each
  RoundCounters* counters;
  int64_t* active[2];  // rows to plan, this round's and the next one's in turn
  int64_t* closed;     // rows for the closed form
  int64_t* factored;   // and for that of one factor
  int64_t* grown;      // and for the grid's factor; null: none is
  void* grow_slots;    // Grid::slot_bytes
  int64_t grow_from = kGrowFrom;
  WorkEntry* small;
  WorkEntry* blocked;
  WorkEntry* tensor;
  WorkEntry* united;
  // A round is the launch's, counted by the host, or where a captured graph repeats the launches,
  // that many after the passes of its loop, which the device counts; null: there is none.
  int32_t* passes = nullptr;
  int32_t launch_round;
  int32_t last_round;
  uint64_t loop = 0;  // the graph's handle of it, for the kernel that ends a pass
  // Of the host's memory, where it looks for the ticket of the launches that it is making and what
  // is told of them (told.h); null: it does not look.
  uint64_t* notice = nullptr;
  uint64_t ticket = 0;

  MVNROB_HD int32_t round() const { return (passes ? *passes : 0) + launch_round; }

  // That are planned in this round.
  MVNROB_HD int64_t planned_rows() const {
    return round() == 0 ? rows : int64_t(counters[round()].active);
  }

  // Whether the row's plan names its variables.
  MVNROB_HD bool names_pivots(int64_t row) const { return order && order[row * n_order] >= 0; }

  template <class T>
  MVNROB_HD T* at(int64_t row, int64_t offset) const {
    return reinterpret_cast<T*>(memory + row * layout.bytes + offset);
  }
  MVNROB_HD double limit(const void* p, int64_t row, int32_t i) const {
    const int64_t k = row * n + i;
    return is_double ? static_cast<const double*>(p)[k] : double(static_cast<const float*>(p)[k]);
  }
  MVNROB_HD bool is_factor() const { return factor_columns >= 0; }
  MVNROB_HD double stored(int64_t row, int32_t i, int32_t j) const {
    const int64_t k = row * cov_strides.batch + i * cov_strides.row + j * cov_strides.column;
    return is_double ? static_cast<const double*>(cov)[k]
                     : double(static_cast<const float*>(cov)[k]);
  }
  // Of row i and `count` columns, -1 for none, whose loads are then under way together.
  template <int count>
  MVNROB_HD void stored(int64_t row, int32_t i, const int32_t (&j)[count],
                        double (&out)[count]) const {
    const int64_t first = row * cov_strides.batch + i * cov_strides.row;
    if (is_double)
      stored_as<double>(first, j, out);
    else
      stored_as<float>(first, j, out);
  }
  template <class T, int count>
  MVNROB_HD void stored_as(int64_t first, const int32_t (&j)[count], double (&out)[count]) const {
    T found[count];
    for (int k = 0; k < count; ++k)
      found[k] = j[k] >= 0 ? static_cast<const T*>(cov)[first + j[k] * cov_strides.column] : T(0);
    for (int k = 0; k < count; ++k) out[k] = double(found[k]);
  }
  MVNROB_HD_FN double product_of_rows(int64_t row, int32_t i, int32_t j) const {
    double sum = 0;
    for (int32_t l = 0; l < factor_columns; ++l) sum += stored(row, i, l) * stored(row, j, l);
    return sum;
  }
  MVNROB_HD double covariance(int64_t row, int32_t i, int32_t j) const {
    return is_factor() ? product_of_rows(row, i, j) : stored(row, i, j);
  }
  // Of the covariance, at most.
  MVNROB_HD int32_t rank() const { return is_factor() && factor_columns < n ? factor_columns : n; }
};

// Rows first .. first + rows - 1 of a batch.
inline MvnCdfArgs tile_of(MvnCdfArgs a, int64_t first, int64_t rows) {
  const int64_t element = a.is_double ? 8 : 4;
  const auto input = [](const void* p, int64_t bytes) -> const void* {
    return p ? static_cast<const char*>(p) + bytes : nullptr;
  };
  const auto output = [&](void*& p) { p = p ? static_cast<char*>(p) + first * element : nullptr; };
  a.rows = rows;
  a.upper = input(a.upper, first * a.n * element);
  a.lower = input(a.lower, first * a.n * element);
  a.cov = input(a.cov, first * a.cov_strides.batch * element);
  a.seed += first;
  for (void** p : {&a.prob, &a.complement, &a.error, &a.log_prob, &a.log_error}) output(*p);
  for (int64_t** p : {&a.status, &a.n_points, &a.n_active, &a.n_pivots})
    if (*p) *p += first;
  if (a.order) {
    a.order += first * a.n_order;
    if (a.tilt) a.tilt += first * a.n_order;
    if (a.forced_sums) a.forced_sums += first * kShifts;
  }
  return a;
}

}  // namespace mvnrob::kernels
