// Differences of some rows of J on their way to shared memory, and products of 8 x 8 of them in a
// thread's registers.
//
// A lane takes one column and kVec rows at a time: loads are coalesced whatever the alignment of J,
// each difference is taken once, and a store of 16 bytes puts kVec rows of one column side by side,
// as the products read them. The pitch spreads eight columns over all banks.
#pragma once
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

template <class T>
struct alignas(16) JacVec {
  static constexpr int kCount = 16 / int(sizeof(T));
  T v[kCount];
};

// `segments` runs of at most `rows` classes each, by a block of `threads`.
template <class in_t, int threads, int segments, int rows>
class JacStage {
 public:
  using T = JacCompute<in_t>;
  static constexpr int kVec = JacVec<T>::kCount;
  static constexpr int kColumns = sizeof(T) == 4 ? 32 : 8;  // what registers have room for
  static constexpr int kPitch = segments * rows + kVec;

  struct Shared {
    alignas(16) T u[2][kColumns][kPitch];
  };

  // Segment s holds classes first[s] .. first[s] + rows - 1, as far as there are any; `used` of the
  // segments, and the first `used_rows` rows of each, are needed.
  MVNROB_DEVICE JacStage(const JacArgs& a, const JacProblem<in_t>& problem, const int64_t* first,
                         int used, int used_rows)
      : problem_(problem),
        stride_(a.row_stride),
        lane_(int(threadIdx.x) % kColumns),
        group_(int(threadIdx.x) / kColumns),
        used_(used),
        used_rows_(used_rows) {
    MVNROB_UNROLL
    for (int s = 0; s < segments; ++s) {
      const int64_t start = first[s] + group_ * kVec;
      from_[s] = problem.rows + start * stride_ + lane_;
      there_[s] = 0;
      for (int i = 0; i < kSteps; ++i)
        for (int v = 0; v < kVec; ++v) {
          const int row = (group_ + i * kGroups) * kVec + v;
          const bool there = s < used && row < used_rows && first[s] + row < a.classes;
          there_[s] |= uint64_t(there) << (i * kVec + v);
        }
    }
  }

  // Columns first .. first + kColumns - 1, those from `end` on as zeros.
  MVNROB_DEVICE void load(int64_t first, int64_t end) {
    const bool inside = first + lane_ < end;
    target_ = inside ? problem_.target_value(first + lane_) : in_t{};
    MVNROB_UNROLL
    for (int s = 0; s < segments; ++s) {
      const uint64_t there = inside ? there_[s] : 0;
      const in_t* p = from_[s] + first;
      MVNROB_UNROLL
      for (int i = 0; i < kSteps; ++i) {
        MVNROB_UNROLL
        for (int v = 0; v < kVec; ++v) {
          value_[s][i][v] = there >> (i * kVec + v) & 1 ? *p : in_t{};
          p += stride_;
        }
        p += (kGroups - 1) * kVec * stride_;
      }
    }
  }

  // What was loaded, as differences. Rows that are not there hold anything: no product of theirs is
  // kept.
  MVNROB_DEVICE void store(Shared& shared, int buffer) const {
    MVNROB_UNROLL
    for (int s = 0; s < segments; ++s) {
      if (s >= used_) break;
      MVNROB_UNROLL
      for (int i = 0; i < kSteps; ++i) {
        const int row = (group_ + i * kGroups) * kVec;
        if (row >= used_rows_) break;
        JacVec<T> u;
        MVNROB_UNROLL
        for (int v = 0; v < kVec; ++v) u.v[v] = widen(target_) - widen(value_[s][i][v]);
        *reinterpret_cast<JacVec<T>*>(&shared.u[buffer][lane_][s * rows + row]) = u;
      }
    }
  }

 private:
  static constexpr int kGroups = threads / kColumns;  // of kVec rows, at once
  static constexpr int kSteps = (rows / kVec + kGroups - 1) / kGroups;
  static_assert(rows % kVec == 0 && threads % kColumns == 0 && kSteps * kVec <= 64);

  const JacProblem<in_t>& problem_;
  int64_t stride_;
  int lane_, group_, used_, used_rows_;
  const in_t* from_[segments];
  uint64_t there_[segments];
  // As they come: to widen bfloat16 on arrival would wait for it before the products.
  in_t target_;
  in_t value_[segments][kSteps][kVec];
};

// Rows of a register block: kParts runs of kVec rows, `part` rows apart, so that neighbouring
// blocks read neighbouring words.
template <class T>
struct JacBlock {
  static constexpr int kVec = JacVec<T>::kCount;
  static constexpr int kParts = 8 / kVec;
  T sum[8][8];

  MVNROB_DEVICE void clear() {
    MVNROB_UNROLL
    for (int r = 0; r < 8; ++r) {
      MVNROB_UNROLL
      for (int c = 0; c < 8; ++c) sum[r][c] = 0;
    }
  }

  // Row r of block p when there are `blocks` of them.
  static MVNROB_DEVICE int row(int p, int r, int blocks) {
    return (r / kVec * blocks + p) * kVec + r % kVec;
  }

  // One column; a and b point to row(p, 0) and row(q, 0).
  MVNROB_DEVICE void multiply(const T* a, const T* b, int part) {
    JacVec<T> x[kParts], y[kParts];
    MVNROB_UNROLL
    for (int i = 0; i < kParts; ++i) {
      x[i] = *reinterpret_cast<const JacVec<T>*>(a + i * part);
      y[i] = *reinterpret_cast<const JacVec<T>*>(b + i * part);
    }
    MVNROB_UNROLL
    for (int r = 0; r < 8; ++r) {
      MVNROB_UNROLL
      for (int c = 0; c < 8; ++c) sum[r][c] += x[r / kVec].v[r % kVec] * y[c / kVec].v[c % kVec];
    }
  }
};

}  // namespace mvnrob::kernels
