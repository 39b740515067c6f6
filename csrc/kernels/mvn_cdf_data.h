// What the kernels of mvn_cdf share in global memory.
//
// A batch is worked through in tiles of rows. Every row of a tile owns a piece of the workspace,
// laid out alike (RowLayout); what a row writes there depends on that row alone.
//
// A row's rows of its factor are executed as a program. Pivot j comes with the rows that have no
// variance left once y_0..y_j are known (its group): each bounds y_j from above or below, so that
//   y_j in [max of the lower bounds, min of the upper bounds],  bound = limit + sum_l coef_l y_l,
// limits and coefficients already divided by the row's coefficient of y_j, coefficients negated.
// After the pivots come the rows that complete: each has variance left, and given the y's is one
// normal probability.
#pragma once
#include "kernels/device.h"
#include "kernels/mvn_cdf_args.h"
#include "plan/row_plan.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

constexpr int kMaxSmallPivots = 32;  // up to here a warp works alone

// Rows of a register block of the program. A small program has blocks of 8 only. A blocked one has
// outer blocks of 64 (32 in float64 without tensor cores), whose part of earlier pivots is one
// matrix product, and in them inner ones of 16.
constexpr int kSmallRows = 8;
constexpr int kInnerRows = 16;
template <class scalar_t>
constexpr int kOuterRows = 256 / int(sizeof(scalar_t));
constexpr int kMostOuterRows = 64;

// A stream is the points of one shift and chunk. A block of the blocked sampler takes two at a
// time, a thread for each point.
constexpr int kBlockedThreads = 128;
constexpr int kStreamsPerBlock = kBlockedThreads / kTileSamples;

// From a number of pivots on (MvnCdfArgs::tensor_pivots) float32 samples take their outer blocks'
// products from the tensor cores (mvn_cdf_sample_tensor.h), a stream in each warp of a block. Of
// the row's own pivots, so that its answer depends on nothing else on a device. Where a
// multiprocessor holds two of its blocks that sampler takes .85 and .83 of the time at 40 and 95
// pivots (H100), without any product before the outer block too: a lane has two points to draw side
// by side. Where it holds one, its floor is a fifth higher from 96 on
// (bench/results/cuda_predicted_tensor.md).
constexpr int kTensorPivots = 33;
constexpr int kTensorPivotsOfOneBlock = 96;
constexpr int kTensorStreams = 4;  // of a block
static_assert(kShifts % kTensorStreams == 0, "no block has fewer");
// And float64 samples on devices with the cores for it, a stream in two warps
// (mvn_cdf_sample_tensor_double.h), if each pivot's products are also large enough: its y goes into
// half of the pivots and all rows that complete. By the same measure
// (bench/results/cuda_predicted_tensor_double.md).
constexpr int kTensorDoublePivots = 96, kTensorDoubleRows = 128;
template <class scalar_t>
MVNROB_HD int least_tensor_pivots(const MvnCdfArgs& a) {
  return sizeof(scalar_t) == 4 ? a.tensor_pivots : kTensorDoublePivots;
}
template <class scalar_t>
MVNROB_HD bool is_tensor(const MvnCdfArgs& a, int pivots, int completed) {
  if (a.scalar_panels || pivots < least_tensor_pivots<scalar_t>(a)) return false;
  return sizeof(scalar_t) == 4 || (a.double_tensor && pivots / 2 + completed >= kTensorDoubleRows);
}
// Whether some plan of the rows may be.
template <class scalar_t>
MVNROB_HD bool may_be_tensor(const MvnCdfArgs& a) {
  const int least = least_tensor_pivots<scalar_t>(a);
  return a.rank() >= least && is_tensor<scalar_t>(a, least, a.n - least);
}
// Whether some plan of the rows has more pivots than a warp takes alone, and is not.
template <class scalar_t>
MVNROB_HD bool may_be_blocked(const MvnCdfArgs& a) {
  return a.rank() > kMaxSmallPivots && !is_tensor<scalar_t>(a, kMaxSmallPivots + 1, 0);
}
// Items of the tensor sampler that so many streams of a row are.
template <class scalar_t>
MVNROB_HD int64_t tensor_items(int64_t streams) {
  return sizeof(scalar_t) == 4 ? streams / kTensorStreams : streams / kStreamsPerBlock;
}

// Threads of a block of the grid that makes a large row's factor (mvn_cdf_grow.h), and of the
// planning kernel's for rows that may be: what both add up has one order.
constexpr int kGrowThreads = 256;

// Numbers that a new column of a factor reads, the mean of those from `pivots` to `target`.
MVNROB_HD double numbers_of_pivot(const MvnCdfArgs& a, double variables, double pivots,
                                  double target) {
  if (a.is_factor()) return variables * double(a.factor_columns);
  const double t = target < variables ? target : variables;
  return variables * (t + pivots) / 2 - (t * t + t * pivots + pivots * pivots) / 3;
}
// Whether the grid may come to make one of some row.
MVNROB_HD bool may_grow(const MvnCdfArgs& a) {
  return a.n > kGrowThreads &&
         numbers_of_pivot(a, a.n, 0, 0.75 * double(a.n)) >= double(a.grow_from);
}

enum ProgramFlag : int32_t {
  kHasUpper = 1,
  kHasLower = 2,
  kClosesPivot = 4,
  kBoundedBelow = 8,  // with kClosesPivot: some row of the group has a lower limit
};

template <class scalar_t>
struct alignas(16) ProgramRow {
  scalar_t upper, lower;
  int32_t flags;
};

// A register block: coefficients of the pivots base..known, column by column, then the shifted
// triangle: entry k of column r multiplies, in row r + 1 + k, the pivot that row r closes.
struct ProgramBlock {
  int64_t coef;
  int32_t base, known;
};

// An outer block: coefficients of the pivots before it, column by column, or as mvn_cdf_halves.h or
// mvn_cdf_fragments.h says.
struct OuterBlock {
  int64_t coef;
  int32_t known;
};

struct Program {
  int32_t pivots;
  int32_t events;                         // of the union
  double whole_mass;                      // and theirs together
  int32_t sampled_blocks, sampled_outer;  // of kSmallRows or kInnerRows rows; of 64 or 32
  int32_t completion_rows;                // padded to whole blocks
  int64_t completion_coef;
  // What to sample now: `tiles` times 64 points of each shift from point `first`, in chunks.
  int64_t first;
  int32_t tiles, chunk_tiles, chunks;
  // independent ones
  int32_t blocks;
  bool tensor;  // for the tensor sampler
};

// State of a row between launches.
struct RowState {
  plan::RowPlan plan;
  plan::FactorFacts facts;
  int32_t live;      // rows of the factor with variance left, pivots excepted
  int32_t trailing;  // columns that a grid has subtracted (mvn_cdf_trailing.h)
  bool restarts;     // the factor begins anew
  bool rectangular;
  bool merged;  // some variables are, into others
  Program program;
};

// Of the variance of a row of the factor, before any pivot.
MVNROB_DEVICE double first_error(const MvnCdfArgs& a, const RowState& s) {
  return a.is_factor() ? plan::first_factor_error(s.facts.entry_error)
                       : plan::first_variance_error(s.facts.entry_error);
}

// The tilt that is given for the row's pivots, or null.
MVNROB_DEVICE const double* given_tilt(const MvnCdfArgs& a, int64_t row) {
  const double* given = a.tilt ? a.tilt + row * a.n_order : nullptr;
  return given && given[0] == given[0] ? given : nullptr;
}

// The matrix is indefinite. One of float64 that was computed in float32 is so by float32 rounding:
// it is judged again as a float32 matrix.
MVNROB_DEVICE_FN void judge_again(const RowOptions& options, RowState& s) {
  const double single = plan::entry_error(false);
  if (s.facts.entry_error >= single) {
    s.plan.step = plan::failed(s.plan, Status::indefinite);
    return;
  }
  const int32_t all = s.plan.all, given = s.plan.given;
  const double largest = s.plan.largest_of_all;
  s.plan = plan::RowPlan{};
  s.facts.entry_error = single;
  s.plan.step = plan::begin(s.plan, options, all, largest, all, 0, given);
}

// Pointers into a row's memory. Computed where they are used: the offsets are in constant memory,
// and registers are dear.
template <class scalar_t>
class RowMemory {
 public:
  MVNROB_DEVICE RowMemory(const MvnCdfArgs& a, int64_t row)
      : layout_(a.layout), base_(a.memory + row * a.layout.bytes) {}

  MVNROB_DEVICE RowState* state() const { return at<RowState>(layout_.state); }
  MVNROB_DEVICE int32_t* variable() const { return at<int32_t>(layout_.variable); }
  MVNROB_DEVICE int32_t* group() const { return at<int32_t>(layout_.group); }
  MVNROB_DEVICE double* inverse_sd() const { return at<double>(layout_.inverse_sd); }
  // of each variable of the input: what it is merged into, and then the limits
  // (mvn_cdf_multiples.h)
  MVNROB_DEVICE int32_t* alike() const { return at<int32_t>(layout_.alike); }
  MVNROB_DEVICE double* merged_upper() const { return at<double>(layout_.merged_upper); }
  MVNROB_DEVICE double* merged_lower() const { return at<double>(layout_.merged_lower); }
  MVNROB_DEVICE double* upper() const { return at<double>(layout_.upper); }
  MVNROB_DEVICE double* lower() const { return at<double>(layout_.lower); }
  MVNROB_DEVICE double* variance() const { return at<double>(layout_.variance); }
  MVNROB_DEVICE double* mean() const { return at<double>(layout_.mean); }
  MVNROB_DEVICE double* variance_error() const { return at<double>(layout_.variance_error); }
  MVNROB_DEVICE double* scratch() const { return at<double>(layout_.scratch); }
  // columns of `variables` numbers
  MVNROB_DEVICE double* factor() const { return at<double>(layout_.factor); }
  // the sampled ones, padded, then those that complete
  MVNROB_DEVICE ProgramRow<scalar_t>* program_rows() const {
    return at<ProgramRow<scalar_t>>(layout_.program_rows);
  }
  // in the factor, of each row of the program without its padding, or of each event's variable
  MVNROB_DEVICE int32_t* row_of() const { return at<int32_t>(layout_.row_of); }
  // and the pivot that a sampled one bounds
  MVNROB_DEVICE int32_t* pivot_of() const { return at<int32_t>(layout_.pivot_of); }
  MVNROB_DEVICE ProgramBlock* blocks() const { return at<ProgramBlock>(layout_.blocks); }
  MVNROB_DEVICE OuterBlock* outer() const { return at<OuterBlock>(layout_.outer); }
  MVNROB_DEVICE scalar_t* coef() const { return at<scalar_t>(layout_.coef); }
  // [kShifts][dimensions of the points]
  MVNROB_DEVICE uint32_t* shifts() const { return at<uint32_t>(layout_.shifts); }
  MVNROB_DEVICE SampleSums* totals() const { return at<SampleSums>(layout_.totals); }
  // [kShifts][max_chunks]
  MVNROB_DEVICE SampleSums* slots() const { return at<SampleSums>(layout_.slots); }
  // of the union's events: the variables above their upper limits, then below their lower ones
  MVNROB_DEVICE double* event_mass() const { return at<double>(layout_.event_mass); }
  MVNROB_DEVICE double* event_share() const { return at<double>(layout_.event_share); }
  // of each pivot, then what finding it needs; see mvn_cdf_tilt.h
  MVNROB_DEVICE double* tilt() const { return at<double>(layout_.tilt); }
  // behind it, of each of so many variables of the input: see mvn_cdf_nearest.h
  MVNROB_DEVICE double* multipliers(int32_t variables) const {
    return tilt() + int64_t(plan::kTiltArrays) * variables;
  }
  // Where a factor of the covariance is given: [pivots][factor_columns]; of each row the variance
  // from which the present one was subtracted; and a number for each pivot or column
  MVNROB_DEVICE double* directions() const { return at<double>(layout_.directions); }
  MVNROB_DEVICE double* reference() const { return at<double>(layout_.reference); }
  MVNROB_DEVICE double* rest() const { return at<double>(layout_.rest); }

 private:
  template <class T>
  MVNROB_DEVICE T* at(int64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

  const RowLayout& layout_;
  unsigned char* base_;
};

// Sizes. `n` variables, at most `rank` pivots, any plan.

MVNROB_HD int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Hands out offsets in order.
class Offsets {
 public:
  int64_t take(int64_t bytes, int64_t alignment = 16) {
    const int64_t at = round_up(end_, alignment);
    end_ = at + bytes;
    return at;
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

// Coefficients of any program: the triangle and the completion together never exceed n^2 / 2, nor n
// times the pivots, plus what padding adds to each row.
MVNROB_HD int64_t max_coefs(int64_t n, int64_t rank) {
  const int64_t rows = round_up(n, kMostOuterRows) + kMostOuterRows;
  const int64_t small = (round_up(n, kSmallRows) + kSmallRows) *
                        ((n < kMaxSmallPivots ? n : kMaxSmallPivots) + kSmallRows);
  if (n <= kMaxSmallPivots) return small;
  const int64_t columns = rank < rows / 2 ? rank : rows / 2;
  const int64_t blocked = rows * (columns + kMostOuterRows + kInnerRows);
  return blocked > small ? blocked : small;
}

}  // namespace mvnrob::kernels
